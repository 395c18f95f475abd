"""How often a person gets an equal prompt promoted who composes the last candidate from what the refused ones showed.

`python -m benchmarks.gate_attack` prints a table, and one JSON object on its last line: the share of trials in which
the composed candidate passed, by setting and number of looks. In a trial a person has K looks at N test rows. K - 1
candidates are trained as always; the K-th is composed of them by a vote, which is a prompt (an ensemble) that anybody
could make. All are truly as good as the champion, so that every promotion is wrong.

    N            test rows (`--rows`), of which a share HARD is hard: on a hard row the label is a fair coin, on the
                 others every prompt is right
    x_k [N]      whether candidate k answers a row otherwise than the champion, which it does on some of the hard rows
                 by chance: on as many rows in all as two real prompts of a recipe do (`gate_pair.parquet`)
    s_k          what the person sees of candidate k after it was refused
    w_k          its weight: s_k minus the mean of all s; 1 if every s_k is the same
    vote [N]     sum over k of w_k (x_k minus its mean); the composed prompt differs from the champion where it is
                 above 0

The person needs no label for the vote. Every candidate is judged by the gate's own paired test, spending and decision,
and s_k is read from the verdict as `gate.disclosure` shows it:

    open         the difference to the champion, `gate.figures: open`
    passes       +1 or -1: whether the check `minimum` passed, which is set to the champion's figure, if `quiet` showed
                 the result of every check
    quiet        what `gate.figures: quiet` shows under the same policy
    any_*        the share of trials in which the composed or an earlier candidate passed; those err by chance alone

`_reserve`: the budget is spent over these looks, because a reserve follows. This is the attack on a leaderboard by Blum
and Hardt (2015, "The Ladder", section 1: boosting by random votes).
"""

import argparse
import json
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.fixtures.prompts import a_report, a_task, an_artifact
from benchmarks.gate_power import Pair
from ptpipeline.evaluation.paired import Hypothesis, mean_difference
from ptpipeline.gate.decide import Evidence, decide
from ptpipeline.gate.disclosure import disclose_verdict
from ptpipeline.gate.spending import Budget, look_at
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Verdict
from ptpipeline.task.task import Task

LOOKS = (30, 100)
CONFIDENCE = 0.95
HARD = 0.3
TOTAL = round(1 - CONFIDENCE, 12)
PLANS = {"": Budget(TOTAL), "_reserve": Budget(TOTAL, LOOKS[0])}  # `looks` of the second is the first number of LOOKS

Values = NDArray[np.float64]
Flips = NDArray[np.bool_]


class Shown(NamedTuple):
    """What the person sees of a refused candidate, by setting."""

    open: float
    passes: float
    quiet: float


class Game(NamedTuple):
    """One person's test rows, the champion's answers there (right or wrong), and the policy of the gate."""

    task: Task
    report: Report
    champion: Flips
    hard: Flips

    def judge(self, flips: Flips, look: int, budget: Budget) -> Verdict:
        """Return the gate's verdict on the prompt that differs from the champion on these rows."""
        candidate, champion = (self.champion ^ flips).astype(np.float64), self.champion.astype(np.float64)
        scores = self.report.prompt.model_copy(update={"accuracy": float(candidate.mean())})
        evidence = Evidence(
            report=self.report.model_copy(update={"prompt": scores}),
            stored_bytes=1,
            champion="champion",
            look=look_at(1, look, budget),
            comparison=mean_difference(Hypothesis("accuracy", CONFIDENCE), candidate, champion),
        )
        return decide(self.task, evidence)


def start(rows: int, dice: Generator) -> Game:
    """Draw test rows and a champion, whose figure is the gate's minimum."""
    hard = dice.random(rows) < HARD
    champion = ~hard | (dice.random(rows) < 0.5)
    declared = a_task(minimum=float(champion.mean()))
    checks = declared.gate.checks
    checks = checks.model_copy(update={"gain": checks.gain.model_copy(update={"policy": "off"})})
    task = declared.model_copy(update={"gate": declared.gate.model_copy(update={"checks": checks})})
    return Game(task, a_report(an_artifact(task), 0.0), champion, hard)


def show(verdict: Verdict) -> Shown:
    """Read what each setting shows of a refused candidate."""
    quiet = disclose_verdict(verdict.model_copy(update={"figures": "quiet"}))
    return Shown(_difference(disclose_verdict(verdict)), _sign(verdict), _difference(quiet) or _sign(quiet))


def _difference(verdict: Verdict) -> float:
    return verdict.comparison.difference if verdict.comparison else 0.0


def _sign(verdict: Verdict) -> float:
    """Whether the candidate reached the champion's figure, if that is shown: +1 or -1, else 0."""
    return sum(1.0 if check.passed else -1.0 for check in verdict.checks if check.name == "minimum")


def compose(flips: Flips, signals: Values) -> Flips:
    """Return where the vote of the candidates [K - 1, N] by the signals [K - 1] differs from the champion [N]."""
    weights = signals - signals.mean()
    if not weights.any():
        weights = np.ones_like(signals)
    voted: Flips = weights @ (flips - flips.mean(axis=0).mean()) > 0
    return voted & flips.any(axis=0)


def play(args: argparse.Namespace, differ: float, trial: int) -> dict[str, bool]:
    """Return under the names of the last line whether the composed candidate, or any, passed."""
    dice = np.random.default_rng([args.seed, trial])
    game = start(args.rows, dice)
    flips = game.hard & (dice.random((LOOKS[-1] - 1, args.rows)) < differ / HARD)
    verdicts = [game.judge(candidate, look, PLANS[""]) for look, candidate in enumerate(flips, 1)]
    signals = np.array([show(verdict) for verdict in verdicts])
    found = {}
    for looks, name in [*((looks, "") for looks in LOOKS), (LOOKS[0], "_reserve")]:
        before = any(_passes(verdict, k, PLANS[name]) for k, verdict in enumerate(verdicts[: looks - 1], 1))
        for place, setting in enumerate(Shown._fields):
            composed = compose(flips[: looks - 1], signals[: looks - 1, place])
            passed = not before and game.judge(composed, looks, PLANS[name]).passed
            found[f"{setting}_{looks}{name}"] = passed
            found[f"any_{setting}_{looks}{name}"] = before or passed
    return found


def _passes(verdict: Verdict, look: int, budget: Budget) -> bool:
    """Whether a candidate passes at that look under another plan than it was judged by."""
    pair = verdict.comparison
    return pair is not None and pair.p_value is not None and pair.p_value <= look_at(1, look, budget).alpha


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Attack, and print the table; returns the figures of the last line."""
    pair = Pair.read()
    right = [np.array(answers) == np.array(pair.label) for answers in (pair.first, pair.second)]
    differ = float((right[0] != right[1]).mean())
    trials = [play(args, differ, trial) for trial in range(args.trials)]
    figures = {name: sum(trial[name] for trial in trials) / len(trials) for name in trials[0]}
    print(f"{args.trials} people, {args.rows} test rows, equal prompts that differ on {differ:.1%} of them; passed:")
    print(f"{'':36}" + "".join(f"{setting:>8}" for setting in Shown._fields))
    for looks, name in [*((looks, "") for looks in LOOKS), (LOOKS[0], "_reserve")]:
        for kind, title in (("", "the composed one"), ("any_", "any")):
            row = "".join(f"{figures[f'{kind}{setting}_{looks}{name}']:8.3f}" for setting in Shown._fields)
            print(f"{f'{looks} looks{name}, {title}':36}{row}")
    return figures | {"trials": args.trials, "rows": args.rows, "differ": differ}


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="people who try")
    parser.add_argument("--rows", type=int, default=1500, help="test rows")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Attack, print the table, then the figures as one JSON object on the last line."""
    print(json.dumps(measure(parse_options())))


if __name__ == "__main__":
    main()
