"""Connections that end: each lasts for one request and a few seconds at most, and there is a bound on their number."""

import asyncio

from ptpipeline.server.connections import TimedConnection

SECONDS = 10.0  # for header, body and answer together; an event of MLflow takes milliseconds
LIMIT = 64


class BriefConnection(TimedConnection):
    """Ends the connection after SECONDS, whatever its client does, and the oldest one if there are more than LIMIT.

    So a stalled client gives way to MLflow, instead of the other way round.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of a new connection."""
        super().connection_made(transport)
        self.start_clock(SECONDS)
        if len(self.connections) > LIMIT:
            others = [one for one in self.connections if isinstance(one, BriefConnection)]
            min(others, key=lambda one: one.since).give_way()
