"""HTTP connections of the guard's servers with a deadline: a client that stalls is cut, so that none can hold a server.

uvicorn itself waits for ever for the end of a request's head, and for a body that was refused unread.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0


class DeadlineProtocol(H11Protocol):
    """Cuts a connection on which no request has been under way for HEAD_SECONDS; bytes that trickle in change nothing.

    While a request is answered there is no deadline: what passed the guard may take its time.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take the bytes in; the clock stops at the end of a head, and starts anew behind the answer."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.get_protocol() is not self:  # a websocket has its own limits
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
