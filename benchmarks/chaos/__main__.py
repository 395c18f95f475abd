"""The command line: plays rounds or scenarios, prints a line for each, and the figures as JSON on the last line."""

import argparse
import json
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.backends import Backends, run_backends
from benchmarks.chaos.rounds import RANDOM, Outcome, Rounds, find_steps, schedule
from benchmarks.chaos.scenarios import SCENARIOS
from benchmarks.chaos.worker import shorten_timeouts

CONTROLLER_PATIENCE = 60  # seconds for MLflow's answers: the controller is not disturbed, the machine may be busy


def main(argv: Sequence[str] | None = None) -> int:
    """Play and print; return 1 if anything acknowledged was lost, anything is torn, or a reader saw what never was."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description="Kill everything, then check whether anything was lost or torn."
    )
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scenario", choices=[RANDOM, *sorted(SCENARIOS)], action="append", help="play only this one; may be repeated"
    )
    arguments = parser.parse_args(argv)
    logging.getLogger().addHandler(logging.NullHandler())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the servers end with this process
    with (
        tempfile.TemporaryDirectory(prefix="ptp-chaos-", ignore_cleanup_errors=True) as folder,
        run_backends(Path(folder)) as backends,
    ):
        figures = run(backends, arguments.seed, arguments.rounds, arguments.scenario)
    print(json.dumps(figures))
    return 1 if figures["lost"] or figures["torn"] or figures["wrong_reads"] else 0


def run(backends: Backends, seed: int, rounds: int, scenarios: Sequence[str] | None = None) -> dict[str, Any]:
    """Play the scenarios, or that many rounds of the seed's choice; return the figures."""
    started, playing = time.monotonic(), Rounds(backends, seed)
    findings: Counter[str] = Counter()
    names = list(scenarios or schedule(rounds, playing.chance))
    with shorten_timeouts(CONTROLLER_PATIENCE):
        for number, name in enumerate(names, start=1):
            began = time.monotonic()
            outcome = playing.play(name)
            findings.update(finding.kind for finding in outcome.findings)
            _print_round(number, outcome, time.monotonic() - began)
        for finding in [finding for controller in playing.controllers for finding in controller.find_lost()]:
            findings[finding.kind] += 1
            print(f"     at the end: {finding.kind}: {finding.what}", flush=True)
    reached = {step for controller in playing.controllers for steps in controller.steps.values() for step in steps}
    return {
        "rounds": len(names),
        **{name: playing.counts[name] for name in ("kills", "acknowledged", "conflicts")},
        "faults": backends.proxy.injected.total(),
        "lost": findings["lost"],
        "torn": findings["torn"],
        "wrong_reads": findings["wrong read"],
        "reads": sum(controller.acknowledged.witnesses.count_reads() for controller in playing.controllers),
        "restarts": dict(backends.restarts),
        "unreached": sorted(find_steps() - reached),
        "seconds": round(time.monotonic() - started, 1),
        "seed": seed,
    }


def _print_round(number: int, outcome: Outcome, seconds: float) -> None:
    print(f"{number:4d} {seconds:5.1f} s  {outcome.name}: {'; '.join(outcome.notes) or 'as named'}", flush=True)
    for finding in outcome.findings:
        print(f"     {finding.kind}: {finding.what}", flush=True)
    for line in outcome.controller.newest_logs() if outcome.findings else []:
        print(f"       {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
