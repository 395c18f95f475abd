"""What a run's speed is computed from."""

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Wall seconds, and text tokens trained on, evaluations apart. A resumed run counts on from its checkpoint."""

    started: float = field(default_factory=time.perf_counter)
    training: float = 0.0
    tokens: int = 0
    steps: int = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, those between an interruption and its resumption apart."""
        return time.perf_counter() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Text tokens (prompt tokens apart) per second of training steps."""
        return self.tokens / max(self.training, 1e-9)
