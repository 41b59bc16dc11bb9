"""A Secret with API keys becomes hashes; what is no key is refused without being told."""

import base64
import hashlib

import pytest

from graft_operator.errors import InvalidManifestError
from graft_operator.resources.api_keys import parse_api_keys
from graft_operator.resources.meta import Manifest

KEY = "a-key-of-some-length"


def secret(**values: str) -> Manifest:
    encoded = {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}
    return {"kind": "Secret", "metadata": {"name": "callers"}, "data": encoded}


def test_keys_and_hashes_of_keys_mean_the_same() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    assert parse_api_keys(secret(one=KEY)) == (digest,)
    assert parse_api_keys(secret(one=f"sha256:{digest}", two=KEY + "\n")) == (digest,)


@pytest.mark.parametrize("value", ["short", "sha256:123", "schlüssel-mit-umlauten", ""])
def test_what_is_no_key_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(InvalidManifestError) as caught:
        parse_api_keys(secret(fine=KEY, wrong=value))
    assert "data.wrong" in str(caught.value)
    assert not value or value not in str(caught.value)


def test_an_empty_secret_is_a_mistake() -> None:
    with pytest.raises(InvalidManifestError):
        parse_api_keys(secret())
