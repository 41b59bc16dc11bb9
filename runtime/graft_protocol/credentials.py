"""The content of one credential file, ``<key>.json`` in the projected Secrets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graft_protocol.base import Message


class Credential(Message):
    """What opens a source. Every field is optional: what is absent comes from the environment."""

    access_key_id: str | None = None
    secret_access_key: str | None = Field(default=None, repr=False)
    session_token: str | None = Field(default=None, repr=False)
    token: str | None = Field(default=None, repr=False)
    region: str | None = None
    endpoint: str | None = None
    """A custom object store, ``scheme://host[:port]``; must be among the allowed endpoints."""
    addressing_style: Literal["path", "virtual"] = "path"
    ca_bundle: str | None = None
    """PEM text of additional certificate authorities."""
