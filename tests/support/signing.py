"""Keys by name, and what they sign: the same key for the same name in one process."""

from __future__ import annotations

from functools import cache

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from graft_operator.cli.signing_key import PrivateKey, sign

_CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
    "secp256k1": ec.SECP256K1(),
}


@cache
def private_key(kind: str = "P-256", name: str = "ours") -> PrivateKeyTypes:
    """Return a key: `P-256` and other curves, `Ed25519`, or `RSA-2048` and other sizes."""
    del name
    if kind in _CURVES:
        return ec.generate_private_key(_CURVES[kind])
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, int(kind.removeprefix("RSA-")))


def public_pem(kind: str = "P-256", name: str = "ours") -> str:
    """Return a key's public half as a service's manifest has it."""
    key = private_key(kind, name).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def private_pem(kind: str = "P-256", name: str = "ours", password: str | None = None) -> bytes:
    """Return a key as a file holds it, encrypted if there is a password."""
    shut: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        shut = serialization.BestAvailableEncryption(password.encode())
    form = serialization.PrivateFormat.PKCS8
    return private_key(kind, name).private_bytes(serialization.Encoding.PEM, form, shut)


def signature(digest: str, kind: str = "P-256", name: str = "ours") -> str:
    """Return a key's signature of a digest as an adapter's manifest has it."""
    key = private_key(kind, name)
    if not isinstance(key, PrivateKey):
        raise TypeError(f"{kind} signs no digest")
    return sign(key, digest)
