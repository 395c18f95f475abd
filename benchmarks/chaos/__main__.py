"""The command line: plays rounds or one scenario, prints a line for each, and the figures as JSON on the last line."""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.rounds import RANDOM, Outcome, Rounds, schedule, steps_in_source
from benchmarks.chaos.scenarios import SCENARIOS
from benchmarks.chaos.worker import hastened
from benchmarks.chaos.world import World, running

CONTROLLER_PATIENCE = 60  # seconds; nobody disturbs the controller, it only has to wait on a busy machine


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where anything acknowledged was lost, or anything is torn."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description="Kill everything, then look whether anything was lost or torn."
    )
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scenario", choices=[RANDOM, *sorted(SCENARIOS)], action="append", help="play this one alone, or several"
    )
    arguments = parser.parse_args(argv)
    logging.getLogger().addHandler(logging.NullHandler())
    with (
        tempfile.TemporaryDirectory(prefix="ptp-chaos-", ignore_cleanup_errors=True) as folder,
        running(Path(folder)) as world,
    ):
        figures = run(world, arguments.seed, arguments.rounds, arguments.scenario)
    print(json.dumps(figures))
    return 1 if figures["lost"] or figures["torn"] else 0


def run(world: World, seed: int, rounds: int, scenarios: Sequence[str] | None = None) -> dict[str, Any]:
    """Play the scenarios, or that many rounds of the seed's choice; the figures."""
    started, playing = time.monotonic(), Rounds(world, seed)
    found: Counter[str] = Counter()
    names = list(scenarios or schedule(rounds, playing.chance))
    with hastened(CONTROLLER_PATIENCE):
        for number, name in enumerate(names, start=1):
            began = time.monotonic()
            outcome = playing.play(name)
            found.update(finding.kind for finding in outcome.findings)
            _tell(number, outcome, time.monotonic() - began)
        for crew in playing.crews:
            for finding in crew.kept():
                found[finding.kind] += 1
                print(f"     at the end: {finding.kind}: {finding.what}", flush=True)
    stood = {step for crew in playing.crews for steps in crew.steps.values() for step in steps}
    counts = {name: playing.counts[name] for name in ("kills", "acknowledged", "conflicts")}
    return {
        "rounds": len(names),
        **counts,
        "faults": world.proxy.injected.total(),
        "lost": found["lost"],
        "torn": found["torn"],
        "restarts": dict(world.restarts),
        "unreached": sorted(steps_in_source() - stood),
        "seconds": round(time.monotonic() - started, 1),
        "seed": seed,
    }


def _tell(number: int, outcome: Outcome, seconds: float) -> None:
    print(f"{number:4d} {seconds:5.1f} s  {outcome.name}: {'; '.join(outcome.notes) or 'as named'}", flush=True)
    for finding in outcome.findings:
        print(f"     {finding.kind}: {finding.what}", flush=True)
    for line in outcome.crew.story() if outcome.findings else []:
        print(f"       {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
