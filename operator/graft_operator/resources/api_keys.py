"""API keys of an adapter: from a tenant's Secret to the hashes that pods compare."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from graft_operator.errors import InvalidManifestError
from graft_protocol.desired import key_hash

KEY_MIN = 16
"""Shortest key, characters: the hash of a shorter one could be guessed."""
KEYS_MAX = 256
"""Most keys of one Secret, and of one adapter."""
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


def parse_api_keys(secret: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the hashes of all keys that a Secret holds, sorted.

    Raises:
        InvalidManifestError: A value is no key. Nothing of the value is told.
    """
    hashes = {_hash(name, value) for name, value in (secret.get("data") or {}).items()}
    if not hashes:
        raise InvalidManifestError("data", "the Secret has no keys")
    if len(hashes) > KEYS_MAX:
        raise InvalidManifestError("data", f"the Secret has more than {KEYS_MAX} keys")
    return tuple(sorted(hashes))


def _hash(name: str, encoded: str) -> str:
    try:
        text = base64.b64decode(encoded, validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError, TypeError, ValueError) as error:
        raise InvalidManifestError(f"data.{name}", "not base64 of UTF-8 text") from error
    hashed = _HASHED.fullmatch(text)
    if hashed is not None:
        return hashed[1]
    if len(text) < KEY_MIN or not text.isascii():
        message = f"neither a key of {KEY_MIN} ASCII characters or more nor sha256: and a hash"
        raise InvalidManifestError(f"data.{name}", message)
    return key_hash(text)
