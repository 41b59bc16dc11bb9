import ipaddress
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.ambient import read_ambient
from graft_runtime.sources.endpoints import Endpoint, SourcePolicy, check_address, parse_endpoint
from graft_runtime.sources.factory import open_source

METADATA_SPELLINGS = [
    "http://169.254.169.254",
    "http://169.254.169.254:80/",
    "http://169.254.0.1",
    "http://2852039166",
    "http://0xa9fea9fe",
    "http://0251.0376.0251.0376",
    "http://169.254.43518",
    "http://[::ffff:169.254.169.254]",
    "http://[::ffff:a9fe:a9fe]",
    "http://[64:ff9b::a9fe:a9fe]",
    "http://[2002:a9fe:a9fe::1]",
    "http://[fd00:ec2::254]",
    "http://[fe80::1]",
    "http://metadata.google.internal",
    "http://METADATA.google.internal.",
    "http://metadata",
    "http://100.100.100.200",
    "http://168.63.129.16",
]


@pytest.mark.parametrize("url", METADATA_SPELLINGS)
def test_a_metadata_service_is_refused_even_where_it_is_allowed(url: str) -> None:
    with pytest.raises(ReasonedError) as caught:
        SourcePolicy(allowed_endpoints=(url,)).check_endpoint(url)
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN


@pytest.mark.parametrize(
    "url",
    [
        "ftp://store.example",
        "https://user:pass@store.example",
        "https://store.example/path",
        "https://store.example?x",
        "https://store.example#x",
        "https://store.example:99999",
        "https://store.example\\@evil",
        "https://störe.example",
        "https://\uff11\uff16\uff19.254.169.254",
        "https://",
        "store.example",
        "",
    ],
)
def test_an_endpoint_is_a_scheme_a_host_and_a_port(url: str) -> None:
    with pytest.raises(ReasonedError):
        parse_endpoint(url)


def test_spellings_of_one_endpoint_are_one() -> None:
    policy = SourcePolicy(allowed_endpoints=("https://Store.Example:443/",))
    assert policy.check_endpoint("https://store.example") == Endpoint("https", "store.example", 443)


@pytest.mark.parametrize(
    "url", ["http://store.example", "https://store.example:8443", "https://store.example.evil.org"]
)
def test_an_endpoint_that_nobody_allowed_is_refused(url: str) -> None:
    with pytest.raises(ReasonedError) as caught:
        SourcePolicy(allowed_endpoints=("https://store.example",)).check_endpoint(url)
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN


@given(st.ip_addresses(v=4, network="169.254.0.0/16"))
def test_no_link_local_address_passes(address: ipaddress.IPv4Address) -> None:
    for spelled in (address, ipaddress.IPv6Address(f"::ffff:{address}")):
        with pytest.raises(ReasonedError):
            check_address(spelled)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1", "8.8.8.8", "2600::1"])
def test_ordinary_addresses_pass(address: str) -> None:
    check_address(ipaddress.ip_address(address))


@given(st.text())
def test_any_text_is_an_endpoint_or_refused(url: str) -> None:
    with suppress(ReasonedError):
        parse_endpoint(url)


def test_a_credential_cannot_name_an_endpoint_by_itself() -> None:
    credential = Credential(endpoint="http://127.0.0.1:9000")
    with pytest.raises(ReasonedError) as caught:
        open_source("s3://bucket/a", credential, SourcePolicy())
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN


@pytest.mark.parametrize("region", ["evil.example/#", "us-east-1.evil", "-", "US EAST"])
def test_a_region_that_would_change_the_host_is_refused(region: str) -> None:
    with pytest.raises(ReasonedError) as caught:
        open_source("s3://bucket/a", Credential(region=region), SourcePolicy())
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN


def test_the_environments_own_endpoint_needs_no_permission() -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_REGION": "eu-central-1"}
    policy = SourcePolicy(ambient=read_ambient(environment))
    assert open_source("s3://bucket/a", None, policy).uri == "s3://bucket/a"


def test_not_even_the_environment_may_name_a_metadata_service() -> None:
    ambient = read_ambient({"AWS_ENDPOINT_URL": "http://169.254.169.254"})
    policy = SourcePolicy(ambient=ambient)
    with pytest.raises(ReasonedError) as caught:
        open_source("s3://bucket/a", None, policy)
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN
