"""Which endpoints may be contacted; decided before any I/O, without exceptions.

`factory.py` asks before it opens a source; the sources ask once more for resolved addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from graft_protocol.reasons import Reason
from graft_protocol.source_rules import is_uri_allowed
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.ambient import Ambient

_ENDPOINT = re.compile(
    r"https?://(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?/?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}

_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})
_METADATA_SUFFIXES = (".metadata.google.internal", "instance-data.ec2.internal")
_FORBIDDEN_NETWORKS = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),
    # Metadata services that do not use a link-local address.
    ipaddress.ip_network("100.100.100.200/32"),
    ipaddress.ip_network("168.63.129.16/32"),
    ipaddress.ip_network("192.0.0.192/32"),
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Endpoint(NamedTuple):
    """A checked endpoint in one spelling."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """The endpoint as a URL without path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True)
class SourcePolicy:
    """What sources a service allows, and how patient reading from them is."""

    allowed_endpoints: tuple[str, ...] = ()
    """Endpoints that a credential or an ``https`` URI may name, ``scheme://host[:port]``."""
    allowed_uris: tuple[str, ...] = ()
    """Prefixes of URIs; none admits all."""
    claims_dir: Path | None = None
    """Where the volume claims are mounted, each under its name."""
    ambient: Ambient = field(default_factory=Ambient)
    connect_timeout_seconds: float = 5.0
    idle_timeout_seconds: float = 30.0
    """Longest wait for the next chunk: notices stalls and sources slower than 35 kB/s."""
    max_retries: int = 3
    """Attempts after the first for one request; backoff grows from 0.1 s to 2 s."""

    def check_uri(self, uri: str) -> None:
        """Admit a URI, in its canonical spelling.

        Raises:
            ReasonedError: SourceForbidden, before any I/O.
        """
        if not is_uri_allowed(uri, self.allowed_uris):
            raise _forbidden(f"{uri} is not under one of the service's allowed URIs")

    def check_endpoint(self, url: str) -> Endpoint:
        """Admit an endpoint that a credential or a URI names.

        Raises:
            ReasonedError: SourceForbidden, before any I/O.
        """
        endpoint = parse_endpoint(url)
        if not self.allows(endpoint):
            raise _forbidden(f"{url!r} is not among the service's allowed endpoints")
        return endpoint

    def allows(self, endpoint: Endpoint) -> bool:
        """Tell whether an endpoint is listed."""
        return endpoint in {parse_endpoint(allowed) for allowed in self.allowed_endpoints}


def parse_endpoint(url: str) -> Endpoint:
    """Bring an endpoint to one spelling and refuse metadata services.

    Raises:
        ReasonedError: SourceForbidden.
    """
    if not url.isascii() or not _ENDPOINT.fullmatch(url):
        raise _forbidden(f"{url!r} is not of the form http(s)://host[:port]")
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    try:
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except ValueError as error:
        raise _forbidden(f"{url!r} has no valid port") from error
    if host in _METADATA_NAMES or host.endswith(_METADATA_SUFFIXES):
        raise _forbidden(f"{url!r} is a metadata service")
    address = literal_address(host)
    if address is not None:
        check_address(address)
    return Endpoint(parts.scheme, host, port)


async def resolve(host: str, port: int, timeout_seconds: float) -> list[Address]:
    """Look a host up, and refuse it if any of its addresses is a metadata service's.

    Raises:
        ReasonedError: SourceForbidden, or SourceUnavailable when there is no such host.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_seconds):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ReasonedError(Reason.SOURCE_UNAVAILABLE, f"{host} cannot be resolved") from error
    addresses = [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]
    for address in addresses:
        check_address(address)
    return addresses


def literal_address(host: str) -> Address | None:
    """Return the address a host spells, in any notation the C library reads, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def check_address(address: Address) -> None:
    """Refuse link-local and metadata addresses, also when wrapped in IPv6.

    Raises:
        ReasonedError: SourceForbidden.
    """
    for candidate in (address, *_embedded(address)):
        if any(candidate in network for network in _FORBIDDEN_NETWORKS):
            raise _forbidden(f"{address} is a link-local or metadata address")


def _embedded(address: Address) -> list[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner: list[Address | None] = [address.ipv4_mapped, address.sixtofour]
    if address in _NAT64 or int(address) >> 32 == 0:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return [found for found in inner if found is not None]


def _forbidden(message: str) -> ReasonedError:
    return ReasonedError(Reason.SOURCE_FORBIDDEN, message)
