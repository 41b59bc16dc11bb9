"""Loading and unloading in Triton's words, where the service allows loading by API.

Both surfaces call it; what is loaded is an adapter, and where it lies is a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from graft_runtime.errors import InvalidRequestError, NotSupportedError
from graft_runtime.server.adapter_port import RuntimeAdapters, source_uri
from graft_runtime.server.body import parse_object
from graft_runtime.server.context import Frontend
from graft_runtime.server.fields import MAX_NAME_CHARS
from graft_runtime.server.kserve.call import resolve_model

NOT_ALLOWED: Final = "loading and unloading at run time is not allowed by this service"
_PATH: Final = "lora_path"


async def load(frontend: Frontend, name: str, parameters: Mapping[str, Any]) -> None:
    """Make a name serve an adapter; without a path, be content if it serves already.

    Args:
        frontend: Who loads.
        name: What the adapter is to be called.
        parameters: ``lora_path`` as such, or in the model configuration that ``config`` holds.

    Raises:
        RequestError: It is not allowed or does not work; which one says why.
    """
    adapters = _adapters(frontend)
    if not 0 < len(name) <= MAX_NAME_CHARS:
        message = f"a model's name has 1 to {MAX_NAME_CHARS} characters"
        raise InvalidRequestError(message, param="model")
    path = _path(parameters)
    if path is None:
        resolve_model(frontend, name)
        return
    await adapters.load(name, source_uri(path), in_place=True)


async def unload(frontend: Frontend, name: str) -> None:
    """Let a name that was loaded by API go.

    Raises:
        RequestError: It is not allowed, or there is none.
    """
    await _adapters(frontend).unload(name)


def _adapters(frontend: Frontend) -> RuntimeAdapters:
    if frontend.adapters is None:
        raise NotSupportedError(NOT_ALLOWED, param="model")
    return frontend.adapters


def _path(parameters: Mapping[str, Any]) -> str | None:
    """Return where the adapter lies, in any of the forms in which a client can say it."""
    for name in parameters:
        if name.startswith("file:"):
            raise InvalidRequestError("files in a request are not supported", param=name[:64])
    path = parameters.get(_PATH)
    config = parameters.get("config")
    if path is None and config is not None:
        if not isinstance(config, str):
            raise InvalidRequestError("`config` must be JSON in a string", param="config")
        path = _configured(parse_object(config.encode()))
    if path is not None and (not isinstance(path, str) or not path):
        raise InvalidRequestError(f"`{_PATH}` must be a string", param=_PATH)
    return path


def _configured(config: Mapping[str, Any]) -> Any:
    """Return the path in a model configuration: beside its fields, or among its parameters."""
    if _PATH in config:
        return config[_PATH]
    nested = config.get("parameters")
    found = nested.get(_PATH) if isinstance(nested, dict) else None
    return found.get("string_value") if isinstance(found, dict) else found
