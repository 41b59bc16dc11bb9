"""The private key that `graft adapter publish --sign-key` signs digests with."""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from graft_operator.errors import PublishError
from graft_operator.plan.public_key import HASHED, usable_key
from graft_protocol.digest import digest_bytes

ENV_PASSWORD = "GRAFT_SIGN_KEY_PASSWORD"  # noqa: S105 - where it is, not what it is
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def read_signing_key(path: Path, password: str | None) -> PrivateKey:
    """Return the key in a PEM file.

    Args:
        path: The file.
        password: Opens it if it is encrypted.

    Raises:
        PublishError: It cannot be read, or services would not take its signatures.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PublishError(f"{path}: {error.strerror}") from error
    try:
        key = _loaded(path, data, password)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PublishError(f"{path} is no private key in PEM that can be read") from error
    problem = usable_key(key.public_key()).problem
    if problem or not isinstance(key, PrivateKey):
        raise PublishError(f"{path} {problem}")
    return key


def sign(key: PrivateKey, digest: str) -> str:
    """Return the signature of a digest ``sha256:<hex>``, in base64."""
    hashed = digest_bytes(digest)
    if isinstance(key, rsa.RSAPrivateKey):
        made = key.sign(hashed, padding.PKCS1v15(), HASHED)
    else:
        made = key.sign(hashed, ec.ECDSA(HASHED))
    return base64.b64encode(made).decode()


def _loaded(path: Path, data: bytes, password: str | None) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(data, None)
    except TypeError:
        if not password:
            raise PublishError(
                f"{path} is encrypted: put its password into {ENV_PASSWORD}"
            ) from None
    try:
        return load_pem_private_key(data, password.encode())
    except ValueError as error:
        raise PublishError(f"the password in {ENV_PASSWORD} does not open {path}") from error
