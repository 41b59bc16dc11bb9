"""A public key: of which kind it has to be, and whether it signed a digest.

A digest is the SHA-256 of the manifest's text, so a signature that tools make over that text with
SHA-256 can be checked without the text. Keys that sign a text and not its hash cannot be used.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from graft_protocol.digest import digest_bytes

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
HASHED = Prehashed(SHA256())
"""How keys are told that they get a digest and no text."""
USABLE_KEYS = "ECDSA on P-256, P-384 or P-521, or RSA of at least 2048 bits"

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_RSA_BITS_MIN = 2048
_KEYS_REMEMBERED = 256
_CHECKS_REMEMBERED = 2**15
"""A version of an adapter costs one, however many keys are tried, and is asked about at every
reconcile: more versions than this would be checked anew each time."""


class KeyFacts(NamedTuple):
    """A key as it was read; `problem` says why it cannot be used."""

    key: PublicKey | None
    problem: str = ""


@lru_cache(maxsize=_KEYS_REMEMBERED)
def read_public_key(pem: str) -> KeyFacts:
    """Return a key from its PEM text."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return KeyFacts(None, "is no public key in PEM that can be read")
    return usable_key(key)


def usable_key(key: object) -> KeyFacts:
    """Return a key if digests can be checked with it, and else its kind as the problem."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        kind, is_usable = f"ECDSA on {key.curve.name}", key.curve.name in _CURVES
        return KeyFacts(key) if is_usable else KeyFacts(None, _unusable(kind))
    if isinstance(key, rsa.RSAPublicKey):
        kind, is_usable = f"RSA of {key.key_size} bits", key.key_size >= _RSA_BITS_MIN
        return KeyFacts(key) if is_usable else KeyFacts(None, _unusable(kind))
    return KeyFacts(None, _unusable(type(key).__name__.removesuffix("PublicKey")))


@lru_cache(maxsize=_CHECKS_REMEMBERED)
def has_any_signed(pems: tuple[str, ...], digest: str, signature: str) -> bool:
    """Whether one of several keys made a signature of a digest."""
    return any(has_signed(pem, digest, signature) for pem in pems)


def has_signed(pem: str, digest: str, signature: str) -> bool:
    """Whether a key made a signature of a digest; one that cannot be used made none.

    Args:
        pem: The public key.
        digest: ``sha256:<hex>``.
        signature: In base64.
    """
    key = read_public_key(pem).key
    if key is None:
        return False
    try:
        made = base64.b64decode(signature, validate=True)
        _verify(key, made, digest_bytes(digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def _verify(key: PublicKey, signature: bytes, digest: bytes) -> None:
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, digest, padding.PKCS1v15(), HASHED)
    else:
        key.verify(signature, digest, ec.ECDSA(HASHED))


def _unusable(kind: str) -> str:
    return f"is {kind}; keys have to be {USABLE_KEYS}"
