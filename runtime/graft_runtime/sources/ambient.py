"""What the process's own environment says about sources: endpoints, a region, a hub, offline.

The identities themselves (keys, profiles, web identity, metadata services) are found by the
clients; here is only what Graft has to know before it opens one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "hf": ("HF_ENDPOINT",),
}
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_PROXIES = tuple(
    spelled
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
    for spelled in (name, name.lower())
)
_YES = frozenset({"1", "on", "true", "yes"})


@dataclass(frozen=True)
class Ambient:
    """The environment's part; all of it optional."""

    endpoints: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By scheme; used where a credential names none."""
    region: str | None = None
    hub_token: str | None = field(default=None, repr=False)
    has_proxy: bool = False
    """Whether all traffic goes through an egress proxy, which decides where it may go."""
    is_offline: bool = False
    """Whether no hub may be asked: only what the disk cache holds is served."""


def read_ambient(environment: Mapping[str, str]) -> Ambient:
    """Pick the variables that the usual tools of each store read."""
    found = {scheme: _first(environment, names) for scheme, names in _ENDPOINTS.items()}
    return Ambient(
        endpoints=MappingProxyType({scheme: url for scheme, url in found.items() if url}),
        region=_first(environment, _REGIONS),
        hub_token=_first(environment, _HUB_TOKENS),
        has_proxy=_first(environment, _PROXIES) is not None,
        is_offline=(_first(environment, _OFFLINE) or "").lower() in _YES,
    )


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)
