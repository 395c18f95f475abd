"""What a run's speed is computed from: its time and its tokens."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple


class Reading(NamedTuple):
    """Wall seconds, and the processor seconds of this process in all its threads, since some moment."""

    seconds: float
    processor_seconds: float

    @classmethod
    def take(cls) -> "Reading":
        """Read both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def measure(self) -> "Reading":
        """Return what passed since this reading."""
        now = Reading.take()
        return Reading(now.seconds - self.seconds, now.processor_seconds - self.processor_seconds)


@dataclass
class Clock:
    """Wall seconds, and text tokens trained on, without evaluations. A resumed run counts on from its checkpoint."""

    started: float = field(default_factory=time.perf_counter)
    training: float = 0.0
    tokens: int = 0
    steps: int = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, without those between an interruption and its resumption."""
        return time.perf_counter() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Text tokens (without those of prompts) per second of training steps."""
        return self.tokens / max(self.training, 1e-9)
