"""Open the source behind a URI, after every check that needs no I/O. The loader calls this."""

from __future__ import annotations

import re

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import Source
from graft_runtime.sources.endpoints import Endpoint, SourcePolicy, parse_endpoint
from graft_runtime.sources.files import FileSource
from graft_runtime.sources.hub import HubSource
from graft_runtime.sources.manifest import ManifestSource
from graft_runtime.sources.object_store import ObjectStoreSource
from graft_runtime.sources.store_config import StoreAccess
from graft_runtime.sources.uri import SourceUri, parse_uri

PUBLIC_HUB = "https://huggingface.co"
"""The hub where neither credential nor environment (`HF_ENDPOINT`) names another."""

# A region becomes part of a host name.
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def open_source(uri: str, credential: Credential | None, policy: SourcePolicy) -> Source:
    """Return the source of a URI without touching it.

    Raises:
        ReasonedError: SourceForbidden for a URI, endpoint or region that is not allowed,
            UnsafePath for a URI that is not plain, SecretNotFound for a key that cannot be one.
    """
    parsed = parse_uri(uri)
    policy.check_uri(str(parsed))
    credential = credential or Credential()
    match parsed.scheme:
        case "file":
            return FileSource(parsed.folder, str(parsed))
        case "pvc":
            return _claim(parsed, policy)
        case "https":
            endpoint = policy.check_endpoint(f"https://{parsed.bucket}")
            return ManifestSource(parsed, endpoint, credential, policy)
        case "hf":
            return _hub(parsed, credential, policy)
        case _:
            return _object_store(parsed, credential, policy)


def _claim(uri: SourceUri, policy: SourcePolicy) -> Source:
    if policy.claims_dir is None:
        raise ReasonedError(Reason.SOURCE_FORBIDDEN, f"{uri}: this pod mounts no volume claims")
    return FileSource(policy.claims_dir / uri.bucket, str(uri), uri.path)


def _hub(uri: SourceUri, credential: Credential, policy: SourcePolicy) -> Source:
    if policy.ambient.is_offline:
        message = f"{uri}: the pod is offline, and its disk cache does not hold this"
        raise ReasonedError(Reason.SOURCE_UNAVAILABLE, message)
    endpoint = _endpoint(uri, credential, policy)
    if credential.endpoint is None and credential.token is None:
        credential = credential.model_copy(update={"token": policy.ambient.hub_token})
    return HubSource(uri, endpoint or parse_endpoint(PUBLIC_HUB), credential, policy)


def _object_store(uri: SourceUri, credential: Credential, policy: SourcePolicy) -> Source:
    region = credential.region or policy.ambient.region
    if region is not None and not _REGION.fullmatch(region):
        raise ReasonedError(Reason.SOURCE_FORBIDDEN, f"{region!r} is not the name of a region")
    endpoint = _endpoint(uri, credential, policy)
    return ObjectStoreSource(uri, StoreAccess(credential, endpoint, region), policy)


def _endpoint(uri: SourceUri, credential: Credential, policy: SourcePolicy) -> Endpoint | None:
    if credential.endpoint is not None:
        return policy.check_endpoint(credential.endpoint)
    ambient = policy.ambient.endpoints.get(uri.scheme)
    return parse_endpoint(ambient) if ambient is not None else None
