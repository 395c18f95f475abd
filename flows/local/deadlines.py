"""Connections of the guard's servers with a deadline: a client that stalls is cut, so that none can hold a server."""

import asyncio

from ptpipeline.server.connections import TimedConnection

HEAD_SECONDS = 20.0


class DeadlineProtocol(TimedConnection):
    """Cuts a connection on which no request has been under way for HEAD_SECONDS; bytes that trickle in change nothing.

    While a request is answered there is no deadline: what passed the guard may take its time.
    """

    upgrades = True  # Prefect's workers and events come by websockets

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take the bytes in; the clock stops at the end of a head, and starts again behind the answer."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        if self.is_answering or self.transport.get_protocol() is not self:  # a websocket has its own limits
            self.stop_clock()
        elif not self.is_timed:
            self.start_clock(HEAD_SECONDS)
