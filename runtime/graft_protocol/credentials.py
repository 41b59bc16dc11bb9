"""The content of one credential file, ``<key>.json`` in the projected Secrets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graft_protocol.base import Message


class Credential(Message):
    """What opens a source. Every field is optional: what is absent comes from the environment.

    Each kind of source reads its own fields and no others.
    """

    access_key_id: str | None = None
    """S3."""
    secret_access_key: str | None = Field(default=None, repr=False)
    session_token: str | None = Field(default=None, repr=False)
    service_account_key: str | None = Field(default=None, repr=False)
    """Google Cloud Storage: the JSON text of a service account's key."""
    account_key: str | None = Field(default=None, repr=False)
    """Azure: a storage account's key, base64."""
    sas_token: str | None = Field(default=None, repr=False)
    """Azure: a shared access signature."""
    tenant_id: str | None = None
    """Azure: with `client_id` and `client_secret`, a service principal."""
    client_id: str | None = None
    client_secret: str | None = Field(default=None, repr=False)
    token: str | None = Field(default=None, repr=False)
    """A bearer token: of a hub's user, of an https host, or of Google or Azure OAuth."""
    region: str | None = None
    endpoint: str | None = None
    """A custom object store or hub, ``scheme://host[:port]``; must be among the allowed
    endpoints."""
    addressing_style: Literal["path", "virtual"] = "path"
    """Where the bucket (S3) or the account (Azure) stands in a custom endpoint's URLs."""
    ca_bundle: str | None = None
    """PEM text of additional certificate authorities."""

    @property
    def has_secret(self) -> bool:
        """Whether it says who asks, or only where."""
        secrets = (
            self.access_key_id,
            self.service_account_key,
            self.account_key,
            self.sas_token,
            self.client_secret,
            self.token,
        )
        return any(secret is not None for secret in secrets)
