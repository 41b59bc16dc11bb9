"""From a credential and a checked endpoint to a client of an object store: S3, Google, Azure.

Nothing of the environment's identity is mixed into a credential that has one of its own, and no
bearer token of the environment goes to an endpoint that a credential named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.endpoints import Endpoint, SourcePolicy
from graft_runtime.sources.uri import SourceUri

if TYPE_CHECKING:
    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        GCSCredential,
        RetryConfig,
        S3Config,
        S3Credential,
    )

_DEFAULT_REGION = "us-east-1"
_PATIENCE = timedelta(days=1)
_IDENTITY_HOSTS = (
    Endpoint("https", "oauth2.googleapis.com", 443),
    Endpoint("https", "login.microsoftonline.com", 443),
)
"""Where keys are exchanged for tokens."""

Store = S3Store | GCSStore | AzureStore


@dataclass(frozen=True)
class StoreAccess:
    """How to reach a bucket; already admitted by the policy."""

    credential: Credential
    endpoint: Endpoint | None
    """None means the provider's own, derived from the region or the account."""
    region: str | None = None


def hosts_of(uri: SourceUri, access: StoreAccess) -> frozenset[Endpoint] | None:
    """Return all that a client of a custom endpoint has to speak with, to be held to it.

    None where that cannot be told: the provider's own endpoint, or the pod's own identity, which
    comes from wherever the environment says.
    """
    credential = access.credential
    if access.endpoint is None or not (credential.has_secret or _is_anonymous(credential)):
        return None
    identity = _IDENTITY_HOSTS if _asks_for_tokens(credential) else ()
    return frozenset((_own_endpoint(uri, access.endpoint, credential), *identity))


def open_store(
    uri: SourceUri, access: StoreAccess, policy: SourcePolicy, proxy_url: str | None = None
) -> Store:
    """Return the client for a URI's bucket; nothing is contacted.

    Raises:
        ReasonedError: SecretNotFound when a key is not what it should be.
    """
    make = {"s3": _s3, "gs": _gcs, "az": _azure}[uri.scheme]
    client = _client(access, policy)
    if proxy_url is not None:
        client["proxy_url"] = proxy_url
    try:
        return make(uri, access, client, _retries(policy))
    except (BaseError, TypeError, ValueError) as error:
        # The text may quote the key.
        message = f"{uri}: a key of the credential is malformed ({type(error).__name__})"
        raise ReasonedError(Reason.SECRET_NOT_FOUND, message) from None


def _s3(uri: SourceUri, access: StoreAccess, client: ClientConfig, retries: RetryConfig) -> Store:
    credential, endpoint = access.credential, access.endpoint
    config: S3Config = {"region": access.region or _DEFAULT_REGION}
    if endpoint is not None:
        config["endpoint"] = _own_endpoint(uri, endpoint, credential).url
    config["virtual_hosted_style_request"] = credential.addressing_style == "virtual"
    return S3Store(
        uri.bucket,
        config=config,
        client_options=client,
        retry_config=retries,
        credential_provider=_StaticKeys(credential) if credential.access_key_id else None,
    )


def _gcs(uri: SourceUri, access: StoreAccess, client: ClientConfig, retries: RetryConfig) -> Store:
    credential, endpoint = access.credential, access.endpoint
    config: GCSConfig = {}
    if endpoint is not None:
        config["base_url"] = endpoint.url
    if credential.service_account_key is not None:
        config["service_account_key"] = _plain_service_account(credential.service_account_key)
    elif credential.token is None and _is_anonymous(credential):
        config["skip_signature"] = True
    return GCSStore(
        uri.bucket,
        config=config,
        client_options=client,
        retry_config=retries,
        credential_provider=_StaticToken(credential.token) if credential.token else None,
    )


def _azure(
    uri: SourceUri, access: StoreAccess, client: ClientConfig, retries: RetryConfig
) -> Store:
    account, _, container = uri.bucket.partition("/")
    credential, endpoint = access.credential, access.endpoint
    config: AzureConfig = {"account_name": account, **_azure_identity(credential)}
    if endpoint is not None:
        own = _own_endpoint(uri, endpoint, credential)
        config["endpoint"] = own.url if own != endpoint else f"{own.url}/{account}"
    return AzureStore(container, config=config, client_options=client, retry_config=retries)


def _own_endpoint(uri: SourceUri, endpoint: Endpoint, credential: Credential) -> Endpoint:
    """Put the bucket or the account into the host, where that is wanted."""
    if credential.addressing_style != "virtual" or uri.scheme == "gs":
        return endpoint
    return endpoint._replace(host=f"{uri.bucket.partition('/')[0]}.{endpoint.host}")


def _azure_identity(credential: Credential) -> AzureConfig:
    if credential.account_key is not None:
        return {"account_key": credential.account_key, "credential_type": "access_key"}
    if credential.sas_token is not None:
        return {"sas_key": credential.sas_token, "credential_type": "sas_token"}
    if credential.client_secret is not None:
        return {
            "tenant_id": credential.tenant_id or "",
            "client_id": credential.client_id or "",
            "client_secret": credential.client_secret,
            "credential_type": "client_secret",
        }
    if credential.token is not None:
        return {"token": credential.token, "credential_type": "bearer_token"}
    return {"skip_signature": True} if _is_anonymous(credential) else {}


def _asks_for_tokens(credential: Credential) -> bool:
    return credential.service_account_key is not None or credential.client_secret is not None


def _is_anonymous(credential: Credential) -> bool:
    """Whether nobody's name is given: an endpoint is named, and no identity for it."""
    return credential.endpoint is not None and not credential.has_secret


def _plain_service_account(text: str) -> str:
    """Keep of a key file what identifies, and nothing that says whom to contact."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError("not an object")
    return json.dumps(
        {
            name: str(fields.get(name, ""))
            for name in ("client_email", "private_key", "private_key_id")
        }
    )


def _client(access: StoreAccess, policy: SourcePolicy) -> ClientConfig:
    endpoint, authorities = access.endpoint, access.credential.ca_bundle
    client: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.scheme == "http",
        "connect_timeout": timedelta(seconds=policy.connect_timeout_seconds),
        "read_timeout": timedelta(seconds=policy.idle_timeout_seconds),
        # The whole body counts against this one, and a model takes as long as it takes.
        "timeout": _PATIENCE,
    }
    if authorities is not None:
        client["root_certificate"] = authorities
    return client


def _retries(policy: SourcePolicy) -> RetryConfig:
    return {
        "max_retries": policy.max_retries,
        "retry_timeout": timedelta(seconds=policy.idle_timeout_seconds),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
        },
    }


class _StaticKeys:
    """Hands out exactly the given keys: none of the environment's may be mixed in."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def __call__(self) -> S3Credential:
        return {
            "access_key_id": self._credential.access_key_id or "",
            "secret_access_key": self._credential.secret_access_key or "",
            "token": self._credential.session_token,
            "expires_at": None,
        }


class _StaticToken:
    """Hands out one bearer token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self) -> GCSCredential:
        return {"token": self._token, "expires_at": None}
