from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.uri import SourceUri, parse_uri


def reason_of(uri: str) -> Reason:
    with pytest.raises(ReasonedError) as caught:
        parse_uri(uri)
    return caught.value.reason


def test_an_s3_uri_has_a_bucket_and_a_prefix() -> None:
    assert parse_uri("s3://bucket/t/a1/") == SourceUri("s3", "bucket", "t/a1")
    assert parse_uri("s3://bucket") == SourceUri("s3", "bucket", "")


def test_a_file_uri_is_a_folder_with_escapes_undone(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    assert parse_uri(folder.as_uri()).folder == folder


@pytest.mark.parametrize("uri", ["http://host/x", "gs://b/x", "S3://b/x", "s3:/b", "", "/etc"])
def test_only_the_listed_schemes_are_sources(uri: str) -> None:
    assert reason_of(uri) is Reason.SOURCE_FORBIDDEN


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://bucket//a",
        "s3://bucket/./a",
        "s3://key:secret@bucket/a",
        "s3://bu..cket/a",
        "s3://bucket:80/a",
        "s3:///a",
        "s3://b/a",
        "s3://bucket/a?versionId=1",
        "s3://bucket/a#b",
        "s3://bucket/a\x00b",
        "s3://bucket/a\nb",
        "s3://bucket\\@evil/a",
        "s3://bucket/" + "a" * 3000,
        "file://host/etc",
        "file:///a/%2e%2e/etc",
        "file:///a%00b",
        "file:///a/..",
    ],
)
def test_a_uri_that_may_mean_another_place_is_refused(uri: str) -> None:
    assert reason_of(uri) is Reason.UNSAFE_PATH


@given(
    st.text() | st.builds("s3://{}".format, st.text()) | st.builds("file://{}".format, st.text())
)
def test_any_text_parses_or_gets_a_reason(uri: str) -> None:
    try:
        parsed = parse_uri(uri)
    except ReasonedError:
        return
    assert ".." not in parsed.path.split("/")
    assert parsed.folder.is_absolute()
