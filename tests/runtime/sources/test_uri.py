from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.uri import SCHEMES, SourceUri, parse_uri


def reason_of(uri: str) -> Reason:
    with pytest.raises(ReasonedError) as caught:
        parse_uri(uri)
    return caught.value.reason


def test_an_s3_uri_has_a_bucket_and_a_prefix() -> None:
    assert parse_uri("s3://bucket/t/a1/") == SourceUri("s3", "bucket", "t/a1")
    assert parse_uri("s3://bucket") == SourceUri("s3", "bucket", "")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("uri", "parsed"),
    [
        ("gs://bucket/t/a1", SourceUri("gs", "bucket", "t/a1")),
        ("az://account/container/t/a1/", SourceUri("az", "account/container", "t/a1")),
        ("az://account/container", SourceUri("az", "account/container", "")),
        ("hf://org/repo@v1.0", SourceUri("hf", "org/repo", "", "v1.0")),
        ("hf://org/repo@refs%2Fpr%2F3/a/b", SourceUri("hf", "org/repo", "a/b", "refs/pr/3")),
        ("https://host:8443/t/manifest", SourceUri("https", "host:8443", "t/manifest")),
        ("pvc://claim/t/a1", SourceUri("pvc", "claim", "t/a1")),
        ("pvc://claim", SourceUri("pvc", "claim", "")),
    ],
)
def test_each_kind_of_uri_says_where_its_files_are(uri: str, parsed: SourceUri) -> None:
    assert parse_uri(uri) == parsed
    assert parse_uri(str(parsed)) == parsed


def test_a_repository_without_revision_means_its_main_branch() -> None:
    assert str(parse_uri("hf://org/repo/deep")) == "hf://org/repo@main/deep"


def test_only_a_whole_commit_makes_a_uri_immutable() -> None:
    assert parse_uri(f"hf://org/repo@{COMMIT}").is_immutable
    for uri in ("hf://org/repo", f"hf://org/repo@{COMMIT[:12]}", f"s3://bucket/{COMMIT}"):
        assert not parse_uri(uri).is_immutable


def test_a_file_uri_is_a_folder_with_escapes_undone(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    assert parse_uri(folder.as_uri()).folder == folder


@pytest.mark.parametrize("uri", ["http://host/x", "ftp://b/x", "S3://b/x", "s3:/b", "", "/etc"])
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
        "gs://b",
        "gs://UPPER/a",
        "az://account",
        "az://acc.ount/container/a",
        "az://account/Container/a",
        "az://account/container/../other",
        "hf://org",
        "hf://org/",
        "hf://org/..",
        "hf://token@org/repo",
        "hf://org/repo@",
        "hf://org/repo@../x",
        "hf://org/repo@a%2F..%2Fb",
        "hf://org/repo@v1/../x",
        "hf://org/re po@v1",
        "https://host",
        "https://host/",
        "https://user:word@host/a",
        "https://host:port/a",
        "https://host/a//b",
        "https://ho st/a",
        "pvc:///a",
        "pvc://Claim/a",
        "pvc://claim/../other/a",
    ],
)
def test_a_uri_that_may_mean_another_place_is_refused(uri: str) -> None:
    assert reason_of(uri) is Reason.UNSAFE_PATH


@given(st.text() | st.builds("{}://{}".format, st.sampled_from(SCHEMES), st.text()))
def test_any_text_parses_or_gets_a_reason(uri: str) -> None:
    try:
        parsed = parse_uri(uri)
    except ReasonedError:
        return
    assert ".." not in parsed.path.split("/")
    assert parse_uri(str(parsed)) == parsed or parsed.scheme == "file"
    assert parsed.folder.is_absolute()
