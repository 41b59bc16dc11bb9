"""Credentials of sources: from a user's Secret to the credential file a pod reads."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from graft_operator.errors import InvalidManifestError
from graft_protocol.credentials import Credential
from graft_protocol.naming import NUM_CREDENTIAL_SECRETS

KEY_MAX = 200
"""Longest credential key, characters; longer Secret names are hashed."""
CREDENTIAL_MAX = 65_536
"""Largest credential, bytes: many share a Secret, and none may take all of it."""

_FIELDS = {
    "accessKeyId": "access_key_id",
    "secretAccessKey": "secret_access_key",
    "sessionToken": "session_token",
    "serviceAccountKey": "service_account_key",
    "accountKey": "account_key",
    "sasToken": "sas_token",
    "tenantId": "tenant_id",
    "clientId": "client_id",
    "clientSecret": "client_secret",
    "token": "token",
    "region": "region",
    "endpoint": "endpoint",
    "addressingStyle": "addressing_style",
    "caBundle": "ca_bundle",
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_REGION": "region",
    "AWS_DEFAULT_REGION": "region",
    "AWS_ENDPOINT_URL": "endpoint",
    "AWS_ENDPOINT_URL_S3": "endpoint",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_token",
    "AZURE_TENANT_ID": "tenant_id",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "HF_TOKEN": "token",
}
"""Keys a Secret may have, in our spelling or in that of the providers' tools."""

_OURS = tuple(key for key in _FIELDS if "_" not in key)


def credential_key(namespace: str, secret_name: str) -> str:
    """Return the name of the credential file, without ``.json``, that holds a Secret's content.

    Namespaces have no dots, so the first dot always ends the namespace.
    """
    key = f"{namespace}.{secret_name}"
    if len(key) <= KEY_MAX:
        return key
    return f"{namespace}.{hashlib.sha256(secret_name.encode()).hexdigest()[:32]}"


def credential_index(key: str) -> int:
    """Return which of a service's Secrets carries a credential file."""
    return hashlib.sha256(key.encode()).digest()[0] % NUM_CREDENTIAL_SECRETS


def credential_text(credential: Credential) -> str:
    """Return the content of a credential file."""
    return credential.model_dump_json(by_alias=True, exclude_none=True)


def parse_credential(secret: Mapping[str, Any]) -> Credential:
    """Read a Secret.

    Raises:
        InvalidManifestError: No known key, a value that is not base64 of UTF-8 text, or too much.
    """
    values: dict[str, str] = {}
    for key, field in _FIELDS.items():
        text = _value(secret, key)
        if text:
            values.setdefault(field, text)
    if not values:
        known = ", ".join(_OURS)
        raise InvalidManifestError("data", f"the Secret has none of the keys {known}")
    try:
        credential = Credential.model_validate(values)
    except ValidationError as error:
        fields = ", ".join(to_camel(str(item["loc"][0])) for item in error.errors())
        raise InvalidManifestError("data", f"not a credential: {fields}") from error
    if len(credential_text(credential).encode()) > CREDENTIAL_MAX:
        raise InvalidManifestError("data", f"the Secret holds more than {CREDENTIAL_MAX} bytes")
    return credential


def _value(secret: Mapping[str, Any], key: str) -> str | None:
    if key not in (secret.get("data") or {}):
        return None
    try:
        return base64.b64decode(secret["data"][key], validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError, TypeError, ValueError) as error:
        raise InvalidManifestError(f"data.{key}", "not base64 of UTF-8 text") from error


def with_plain_data(secret: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Secret with ``stringData`` folded into ``data``, as an API server stores it."""
    folded = {key: value for key, value in secret.items() if key != "stringData"}
    plain = secret.get("stringData") or {}
    encoded = {key: base64.b64encode(str(value).encode()).decode() for key, value in plain.items()}
    folded["data"] = {**(secret.get("data") or {}), **encoded}
    return folded
