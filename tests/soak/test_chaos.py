"""Every named scenario of chaos once, and as many rounds of chance; another seed each day."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.chaos.__main__ import run
from benchmarks.chaos.backends import run_backends
from benchmarks.chaos.rounds import RANDOM
from benchmarks.chaos.scenarios import SCENARIOS

pytestmark = [pytest.mark.soak, pytest.mark.servers]


def test_no_scenario_loses_or_tears_anything(tmp_path: Path) -> None:
    seed = datetime.now(UTC).toordinal()
    with run_backends(tmp_path) as backends:
        figures = run(backends, seed, 0, [*sorted(SCENARIOS), *[RANDOM] * len(SCENARIOS)])
    print(f"chaos: {figures}", file=sys.stderr)
    assert (figures["lost"], figures["torn"], figures["wrong_reads"]) == (0, 0, 0), f"seed {seed}"
