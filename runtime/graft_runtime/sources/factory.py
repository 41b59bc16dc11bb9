"""Open the source behind a URI, after every check that needs no I/O. The loader calls this."""

from __future__ import annotations

import re
from collections.abc import Mapping

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import Source
from graft_runtime.sources.endpoints import Endpoint, SourcePolicy, parse_endpoint
from graft_runtime.sources.files import FileSource
from graft_runtime.sources.object_store import ObjectStoreSource, StoreAccess
from graft_runtime.sources.uri import parse_uri

_AMBIENT_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_AMBIENT_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
# A region becomes part of a host name.
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def policy_from_environment(
    allowed_endpoints: tuple[str, ...], environment: Mapping[str, str]
) -> SourcePolicy:
    """Make the policy of this process: what the service allows, and its own environment's store."""
    return SourcePolicy(
        allowed_endpoints=allowed_endpoints,
        ambient_endpoint=_first(environment, _AMBIENT_ENDPOINTS),
        ambient_region=_first(environment, _AMBIENT_REGIONS),
    )


def open_source(uri: str, credential: Credential | None, policy: SourcePolicy) -> Source:
    """Return the source of a URI without touching it.

    Raises:
        ReasonedError: SourceForbidden for a scheme, endpoint or region that is not allowed,
            UnsafePath for a URI that is not plain.
    """
    parsed = parse_uri(uri)
    if parsed.scheme == "file":
        return FileSource(parsed.folder)
    credential = credential or Credential()
    region = credential.region or policy.ambient_region
    if region is not None and not _REGION.fullmatch(region):
        raise ReasonedError(Reason.SOURCE_FORBIDDEN, f"{region!r} is not the name of a region")
    endpoint = _endpoint(credential, policy)
    return ObjectStoreSource(parsed, StoreAccess(credential, endpoint, region), policy)


def _endpoint(credential: Credential, policy: SourcePolicy) -> Endpoint | None:
    if credential.endpoint is not None:
        return policy.check_endpoint(credential.endpoint)
    if policy.ambient_endpoint is not None:
        return parse_endpoint(policy.ambient_endpoint)
    return None


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)
