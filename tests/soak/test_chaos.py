"""Every named scenario of chaos once, and as many rounds of chance; another seed each day."""

import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.chaos.__main__ import run
from benchmarks.chaos.backends import run_backends
from benchmarks.chaos.controller import Controller
from benchmarks.chaos.rounds import RANDOM
from benchmarks.chaos.scenarios import SCENARIOS
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.records.verdicts import Verdict
from registry.ledger.ledger import Ledger
from registry.repair.doctor import examine

pytestmark = [pytest.mark.soak, pytest.mark.servers]


def test_no_scenario_loses_or_tears_anything(tmp_path: Path) -> None:
    seed = datetime.now(UTC).toordinal()
    with run_backends(tmp_path) as backends:
        figures = run(backends, seed, 0, [*sorted(SCENARIOS), *[RANDOM] * len(SCENARIOS)])
    print(f"chaos: {figures}", file=sys.stderr)
    assert (figures["lost"], figures["torn"], figures["wrong_reads"]) == (0, 0, 0), f"seed {seed}"


def stop_before_the_ledger() -> None:
    """A worker's ledger takes no verdict any more, as on a full disk."""

    def refuse(ledger: Ledger, verdict: Verdict) -> None:
        raise ServiceUnavailable("the disk is full")

    Ledger.save_verdict = refuse  # type: ignore[method-assign]


def test_a_verdict_that_only_the_store_holds_is_given_again_by_a_repeat(tmp_path: Path) -> None:
    with run_backends(tmp_path) as backends:
        controller = Controller(backends, backends.make_target(1), Counter())
        controller.run(*(controller.make_job("publish", seed=seed) for seed in (0, 1)))
        controller.run(controller.make_job("promote", seed=0))
        controller.prepare = stop_before_the_ledger
        controller.run(controller.make_job("promote", seed=1))
        controller.prepare = None
        with controller.target.inspect() as registry:
            [difference] = examine(registry)
            assert difference.found.startswith("a newer verdict, which the ledger lacks")
        controller.finish_workers()
        assert controller.examine() == []
