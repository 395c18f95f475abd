"""Connections that end: each lasts for one request and a few seconds at most, and there is a bound on their number."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 10.0  # for header, body and answer together; an event of MLflow takes milliseconds
LIMIT = 64


class BriefConnection(H11Protocol):
    """Ends the connection after SECONDS, whatever its client does, and the oldest one if there are more than LIMIT.

    So a stalled client gives way to MLflow, instead of the other way round.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of a new connection."""
        super().connection_made(transport)
        self.opened = self.loop.time()
        self._deadline = self.loop.call_later(SECONDS, transport.abort)
        if len(self.connections) > LIMIT:
            oldest: Any = min(self.connections, key=lambda connection: getattr(connection, "opened", 0.0))
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._deadline.cancel()
        super().connection_lost(exc)
