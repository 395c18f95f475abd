"""Connections with deadlines: who stalls is cut, and gives way to others if there are too many connections.

uvicorn itself waits forever for the end of a request's head, and for a body that was refused unread.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # until a request's head is complete
IDLE_SECONDS = 65  # between two requests; more than the load balancers' usual 60, so that they close first
STALL_SECONDS = 20.0  # until a client has taken what fills its buffer
MOST = 512  # connections of one server before the oldest that waits for its client is cut; never more than twice


class TimedConnection(H11Protocol):
    """A connection that is cut when its clock runs out; who inherits says when the clock starts and stops."""

    upgrades = False  # whether a client may change to a websocket
    _clock: asyncio.TimerHandle | None = None
    since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Note the time."""
        super().connection_made(transport)
        self.since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self.stop_clock()

    def _should_upgrade(self) -> bool:
        """Stay with HTTP/1.1, whatever else a client offers (RFC 9110, section 7.8); uvicorn would warn each time."""
        return self.upgrades and bool(super()._should_upgrade())

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP, and end the connection; the request before them, if any, counts as left.

        uvicorn would let its answer go on, or begin a second one: either fails, and the log gets a traceback.
        """
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    @property
    def is_answering(self) -> bool:
        """Whether a request is under way: its head was read, and its answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_timed(self) -> bool:
        """Whether the clock runs."""
        return self._clock is not None

    def start_clock(self, seconds: float) -> None:
        """Cut the connection in so many seconds, unless the clock is stopped or started again."""
        self.stop_clock()
        self._clock = self.loop.call_later(seconds, self.transport.abort)

    def stop_clock(self) -> None:
        """Let the connection last."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def give_way(self) -> None:
        """Cut the connection now, and count it no more."""
        self.connections.discard(self)
        self.transport.abort()


class PatientConnection(TimedConnection):
    """Cuts a client that does not send its head or does not take its answer, whatever trickles in.

    Bodies have a deadline of their own (`Door`). If there are more than MOST connections, the oldest one that waits for
    its client gives way. Those that wait for us stay, because their answers end; at twice MOST the new one is cut.
    """

    _stalling: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head."""
        super().connection_made(transport)
        # uvicorn writes addresses with their queries if anybody has added a handler to its log
        self.access_log = False
        self.start_clock(HEAD_SECONDS)
        if len(self.connections) > MOST:
            others: list[Any] = [one for one in self.connections if isinstance(one, PatientConnection)]
            waiting = [one for one in others if one is not self and one.waits]
            if waiting or len(self.connections) > 2 * MOST:
                min(waiting, key=lambda one: one.since, default=self).give_way()

    @property
    def waits(self) -> bool:
        """Whether the next move is the client's: to send a head or a body, or to take the answer."""
        return not self.is_answering or self.cycle.more_body or self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        """Take the bytes in; the clock stops at the end of a head."""
        super().data_received(data)
        if self.is_answering:
            self.stop_clock()

    def on_response_complete(self) -> None:
        """Start the clock for the next head; it also ends a client that takes no more of the last answer."""
        super().on_response_complete()
        if not self.is_answering:  # the client may have sent the next request already
            self.start_clock(IDLE_SECONDS + HEAD_SECONDS)

    def pause_writing(self) -> None:
        """Start the clock for a client that takes too little."""
        super().pause_writing()
        self._stalling = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that clock."""
        super().resume_writing()
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both clocks."""
        super().connection_lost(exc)
        self._rest()

    def _rest(self) -> None:
        if self._stalling is not None:
            self._stalling.cancel()
            self._stalling = None
