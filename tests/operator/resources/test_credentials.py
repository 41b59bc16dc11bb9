"""From a user's Secret to a credential file."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_operator.errors import InvalidManifestError
from graft_operator.resources.credentials import (
    CREDENTIAL_MAX,
    KEY_MAX,
    credential_key,
    parse_credential,
    with_plain_data,
)


def secret(**plain: str) -> dict[str, object]:
    return with_plain_data({"kind": "Secret", "metadata": {"name": "s"}, "stringData": plain})


def test_both_spellings_of_a_key_mean_the_same() -> None:
    ours = secret(accessKeyId="id", secretAccessKey="key", endpoint="http://127.0.0.1:9000")
    aws = secret(
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="key",
        AWS_ENDPOINT_URL="http://127.0.0.1:9000",
    )
    assert parse_credential(ours) == parse_credential(aws)


def test_a_line_end_after_a_value_is_no_part_of_it() -> None:
    assert parse_credential(secret(token="abc\n")).token == "abc"


def test_a_secret_without_any_known_key_is_refused_with_the_keys_that_are() -> None:
    with pytest.raises(InvalidManifestError, match="accessKeyId"):
        parse_credential(secret(username="x"))


def test_a_value_that_is_not_base64_is_refused_without_showing_it() -> None:
    with pytest.raises(InvalidManifestError) as caught:
        parse_credential({"data": {"token": "%%hush%%"}})
    assert "data.token" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_wrong_addressing_style_is_refused_by_name() -> None:
    with pytest.raises(InvalidManifestError, match="addressingStyle"):
        parse_credential(secret(addressingStyle="diagonal"))


def test_one_that_is_too_large_to_share_a_secret_with_others_is_refused() -> None:
    assert parse_credential(secret(caBundle="x" * (CREDENTIAL_MAX - 100))).ca_bundle
    with pytest.raises(InvalidManifestError, match=str(CREDENTIAL_MAX)):
        parse_credential(secret(caBundle="x" * CREDENTIAL_MAX))


def test_plain_data_wins_over_encoded_data() -> None:
    document = {"data": {"token": "b2xk", "region": "eA=="}, "stringData": {"token": "new"}}
    folded = with_plain_data(document)
    assert base64.b64decode(folded["data"]["token"]) == b"new"
    assert "stringData" not in folded
    assert folded["data"]["region"] == "eA=="


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", fullmatch=True)


@given(st.lists(st.tuples(st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True), NAMES), unique=True))
def test_different_secrets_have_different_keys_that_fit(names: list[tuple[str, str]]) -> None:
    keys = [credential_key(*name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= KEY_MAX + 64 for key in keys)
