"""The port between the front doors and whoever loads adapters that clients ask for.

There is one only where the service allows loading by API (`spec.adapters.allowRuntimeLoading`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from graft_runtime.errors import InvalidRequestError


@dataclass(frozen=True)
class Blend:
    """Names of adapters and the weights with which their updates are added up."""

    names: tuple[str, ...]
    weights: tuple[float, ...]


def source_uri(path: str, source: str | None = None) -> str:
    """Return the URI that clients of vLLM or LoRAX mean.

    Args:
        path: A URI, a folder, or a repository of the hub.
        source: LoRAX's ``adapter_source``.

    Raises:
        InvalidRequestError: A source that is not supported, or that the path does not fit.
    """
    if source not in (None, "hub", "local", "s3"):
        message = f"`adapter_source` {source[:32]!r} is not supported"
        raise InvalidRequestError(message, param="adapter_source")
    if "://" in path:
        if source == "s3" and not path.startswith("s3://"):
            message = "`adapter_id` is no `s3://` URI, as `adapter_source` says"
            raise InvalidRequestError(message, param="adapter_id")
        return path
    if source == "s3":
        return f"s3://{path}"
    if source == "local" or (source is None and path.startswith("/")):
        return f"file://{path}"
    return f"hf://{path}"


class RuntimeAdapters(Protocol):
    """Adapters by API, over the same registry and limits as declared ones."""

    async def load(self, name: str, uri: str, *, in_place: bool) -> None:
        """Make a name serve what lies at a URI; returns when it does.

        Raises:
            RequestError: It cannot; which one says why. Whatever served before serves on.
        """
        ...

    async def unload(self, name: str) -> None:
        """Let a name that was loaded by API go; its running requests end with it.

        Raises:
            ModelNotFoundError: No such name was loaded by API.
        """
        ...

    async def demand(self, uri: str) -> str:
        """Return the name under which the adapter at a URI serves, after loading it if need be.

        Raises:
            RequestError: It cannot be loaded, or not in time.
        """
        ...

    async def blend(self, blend: Blend) -> str:
        """Return the name under which the weighted sum of adapters serves.

        Raises:
            RequestError: One of them does not serve, or the sum does not fit.
        """
        ...
