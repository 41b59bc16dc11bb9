"""How `http_client.py` connects: to checked addresses, under TLS with chosen authorities."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from functools import cache

import httpcore

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.endpoints import resolve


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses alone: a name may lead elsewhere at the next look."""

    def __init__(self, timeout_seconds: float) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._timeout_seconds = timeout_seconds

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Try a name's addresses, one after the other."""
        last: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await resolve(host, port, self._timeout_seconds):
            try:
                return await self._inner.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last


def tls_context(authorities: str | None) -> ssl.SSLContext:
    """Return the context that trusts the public authorities and, if given, those of a PEM text.

    Raises:
        ReasonedError: SecretNotFound when the text holds no certificates.
    """
    if authorities is None:
        return _public()
    context = httpcore.default_ssl_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=authorities)
    except ssl.SSLError as error:
        message = "the credential's caBundle holds no certificates"
        raise ReasonedError(Reason.SECRET_NOT_FOUND, message) from error
    return context


@cache
def _public() -> ssl.SSLContext:
    """Make the context once: reading the authorities takes longer than a small download."""
    context = httpcore.default_ssl_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
