"""The container that serves: its image, its environment, and who it is."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from graft_operator.resources.exposure import ServiceAccountSpec
from graft_operator.resources.fields import each_once
from graft_operator.resources.meta import Closed

ENV_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
RESERVED_ENV = "GRAFT_"
ENV_IS_TAKEN = f"names beginning with {RESERVED_ENV} are taken"


def _not_reserved(name: str) -> str:
    if name.startswith(RESERVED_ENV):
        raise ValueError(ENV_IS_TAKEN)
    return name


class EnvVar(Closed):
    """An environment variable of the runtime container."""

    name: Annotated[
        str,
        Field(
            pattern=ENV_PATTERN,
            max_length=256,
            json_schema_extra={
                "x-kubernetes-validations": [
                    {"rule": f"!self.startsWith('{RESERVED_ENV}')", "message": ENV_IS_TAKEN}
                ]
            },
        ),
        AfterValidator(_not_reserved),
    ]
    """Name of the variable. Names that begin with `GRAFT_` are taken."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Its value."""


class RuntimeSpec(Closed):
    """The container that serves."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the runtime. Defaults to the operator's own version. Local mode runs the installed
    runtime instead."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
        AfterValidator(each_once("name")),
    ] = ()
    """Additional environment variables, each name once."""
    service_account: ServiceAccountSpec = ServiceAccountSpec()
    """The identity of the pods."""
