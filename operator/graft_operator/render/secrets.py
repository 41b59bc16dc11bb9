"""Credentials of sources and the token of the internal port, as Secrets."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from graft_operator.render.common import child, child_name
from graft_operator.resources.credentials import credential_index, credential_text
from graft_operator.resources.meta import Manifest
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.credentials import Credential
from graft_protocol.naming import NUM_CREDENTIAL_SECRETS

CONTENT_CREDENTIALS = "credentials"
CONTENT_TOKEN = "internal-token"  # noqa: S105 - a label, not a token
TOKEN_KEY = "token"  # noqa: S105 - a key, not a token


def credential_secret_name(service: InferenceService, index: int) -> str:
    """Return the name of one of the Secrets that carry credential files."""
    return child_name(service, f"credentials-{index}")


def credential_secret_names(service: InferenceService) -> tuple[str, ...]:
    """Return the names of all of them."""
    return tuple(credential_secret_name(service, index) for index in range(NUM_CREDENTIAL_SECRETS))


def credential_secrets(
    service: InferenceService, credentials: Mapping[str, Credential]
) -> list[Manifest]:
    """Return the Secrets of all credentials, by key; every Secret exists, empty or not.

    The pod mounts them whole, so adding or rotating a credential never touches the pod template.
    """
    files: list[dict[str, str]] = [{} for _ in range(NUM_CREDENTIAL_SECRETS)]
    for key, credential in sorted(credentials.items()):
        files[credential_index(key)][f"{key}.json"] = _encoded(credential_text(credential))
    return [
        _secret(service, credential_secret_name(service, index), CONTENT_CREDENTIALS, data)
        for index, data in enumerate(files)
    ]


def token_secret_name(service: InferenceService) -> str:
    """Return the name of the Secret that guards the internal port."""
    return child_name(service, "internal")


def token_secret(service: InferenceService, token: str) -> Manifest:
    """Return the Secret of the internal port."""
    data = {TOKEN_KEY: _encoded(token)}
    return _secret(service, token_secret_name(service), CONTENT_TOKEN, data)


def read_token(secret: Manifest) -> str | None:
    """Return the token that a stored Secret holds; None if it holds none."""
    encoded = (secret.get("data") or {}).get(TOKEN_KEY)
    return base64.b64decode(encoded).decode() if encoded else None


def _secret(service: InferenceService, name: str, content: str, data: dict[str, str]) -> Manifest:
    head = child(service, "v1", "Secret", name, content=content)
    return {**head, "type": "Opaque", "data": data}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
