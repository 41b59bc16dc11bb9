import pytest

from graft_protocol.source_rules import claim_of, https_endpoint, is_uri_allowed


@pytest.mark.parametrize(
    ("uri", "prefix", "allowed"),
    [
        ("s3://bucket/team-a/x", "s3://bucket/team-a", True),
        ("s3://bucket/team-a/x", "s3://bucket/team-a/", True),
        ("s3://bucket/team-a", "s3://bucket/team-a/", True),
        ("s3://bucket/team-a/", "s3://bucket/team-a", True),
        ("s3://bucket/team-ab", "s3://bucket/team-a", False),
        ("s3://bucket2/x", "s3://bucket", False),
        ("gs://bucket/x", "s3://bucket", False),
        ("hf://org/repo@v1/deep", "hf://org/", True),
        ("hf://org/repo@v1/deep", "hf://org/repo", True),
        ("hf://org/repo2@v1", "hf://org/repo", False),
        ("hf://organisation/repo", "hf://org", False),
        ("hf://org/repo", "hf://", True),
        ("https://host.evil/x", "https://host", False),
        ("https://host:8443/x", "https://host", False),
    ],
)
def test_a_prefix_ends_at_a_whole_part(uri: str, prefix: str, allowed: bool) -> None:
    assert is_uri_allowed(uri, [prefix]) is allowed
    assert is_uri_allowed(uri, ["az://none", prefix]) is allowed


def test_without_prefixes_every_uri_is_allowed() -> None:
    assert is_uri_allowed("s3://bucket/x", [])


def test_an_https_uri_names_its_own_endpoint_and_a_pvc_uri_its_claim() -> None:
    assert https_endpoint("https://host:8443/a/b") == "https://host:8443"
    assert https_endpoint("s3://bucket/a") is None
    assert claim_of("pvc://claim/a") == claim_of("pvc://claim") == "claim"
    assert claim_of("s3://claim/a") is None
