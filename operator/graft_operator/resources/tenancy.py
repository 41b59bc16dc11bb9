"""What a service allows the namespaces whose adapters it takes, and an adapter its callers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from graft_operator.resources.fields import Bytes, Count, Namespace, ObjectName
from graft_operator.resources.meta import Closed
from graft_operator.resources.selector import NamespaceSelector

NAMES_WHEN_LISTED = "names goes with from: Listed, and only with that"
SELECTOR_WHEN_SELECTED = "selector goes with from: Selector, and only with that"

Rank = Annotated[int, Field(ge=1, le=512)]


class AllowedNamespaces(Closed):
    """From where adapters may attach."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "(self.from == 'Listed') == has(self.names)",
                    "message": NAMES_WHEN_LISTED,
                },
                {
                    "rule": "(self.from == 'Selector') == has(self.selector)",
                    "message": SELECTOR_WHEN_SELECTED,
                },
            ]
        }
    )

    from_: Annotated[Literal["Same", "Listed", "Selector", "All"], Field(alias="from")] = "Same"
    """`Same`: the service's own namespace. `Listed`: that, and those in `names`. `Selector`: that,
    and those whose labels fit `selector`. `All`: every namespace."""
    names: Annotated[tuple[Namespace, ...], Field(max_length=256)] | None = None
    """Namespaces that are let in with `from: Listed`."""
    selector: NamespaceSelector | None = None
    """Namespaces that are let in with `from: Selector`, as their labels are now: one that loses
    them loses its adapters here within half a minute. Local mode has no Namespaces to look at."""

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> AllowedNamespaces:
        if (self.from_ == "Listed") != (self.names is not None):
            raise ValueError(NAMES_WHEN_LISTED)
        if (self.from_ == "Selector") != (self.selector is not None):
            raise ValueError(SELECTOR_WHEN_SELECTED)
        return self

    def admits(self, namespace: str, own: str, labels: Mapping[str, str] | None) -> bool:
        """Whether adapters of a namespace may attach to a service in `own`.

        Args:
            namespace: Theirs.
            own: The service's.
            labels: Of their namespace. None if nobody knows them: then no selector lets it in,
                since a label that is not known is not one that is absent.
        """
        if self.selector is not None and labels is not None and self.selector.matches(labels):
            return True
        return self.from_ == "All" or namespace == own or namespace in (self.names or ())


class TenantSpec(Closed):
    """Limits of namespaces, for each of them by itself. What is left out is not limited."""

    namespaces: Annotated[tuple[Namespace, ...], Field(max_length=64)] = ()
    """Which namespaces. Without any: all that no other entry names."""
    max_adapters: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Adapters of a namespace that are accepted. The longest served come first."""
    max_bytes: Bytes | None = None
    """Size of its accepted adapters together, bytes, as far as pods have found them out."""
    max_rank: Rank | None = None
    """Largest rank of an adapter, as declared or as found."""
    max_concurrent_requests: Count | None = None
    """Requests for its adapters that one pod has in flight; further ones get a 429. It holds for
    each pod by itself: what a service takes from a namespace grows with its replicas, as its
    capacity does, and no pod has to ask another before it answers."""
    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Its share of a busy engine, relative to other namespaces."""


class KeySecretRef(Closed):
    """A Secret with API keys, in the adapter's own namespace."""

    name: ObjectName
    """Name of the Secret. Every value in it is a key of at least 16 characters, or the hash of one:
    `sha256:` and 64 hexadecimal digits."""


class AccessSpec(Closed):
    """Who may use an adapter. To everybody else it looks as if it did not exist."""

    api_key_secret_refs: Annotated[tuple[KeySecretRef, ...], Field(min_length=1, max_length=8)]
    """Secrets with the keys that open it, sent as `Authorization: Bearer` or `x-api-key`."""


class DeclaredSpec(Closed):
    """What the adapter's files will turn out to be, so that a refusal need not wait for them."""

    rank: Rank | None = None
    """Its largest rank."""
