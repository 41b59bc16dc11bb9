"""Drop a connection whose client does not read, with all that waits to be sent to it.

ASGI has no word for that: an application that returns early leaves the connection open until the
client has taken what was written, which such a client never does, and the server takes it for a
mistake. `listener` puts the way to do it into each scope; what runs under another server goes on as
if there were none. The surfaces that stream call it.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Scope

EXTENSION: Final = "graft.abort"
"""Name in a scope's ``extensions`` of what closes the connection without sending the rest."""


async def hang_up(scope: Scope, receive: Receive) -> None:
    """Drop the connection, and return once the server knows that it is gone.

    Args:
        scope: Of the request, or of the WebSocket.
        receive: The connection; nobody else may be reading from it.
    """
    abort = scope.get("extensions", {}).get(EXTENSION)
    if abort is None:
        return
    abort()
    while not (await receive())["type"].endswith(".disconnect"):
        pass
