"""How often the gate errs, and what it sees: from the per-row results of two really trained prompts.

`python -m benchmarks.gate_power --nights 365` prints its tables, and one JSON object on its last line. In a trial of
equal prompts the two real ones' answers change places by coin, row by row: every promotion is wrong then. For gains,
slides and years a prompt's answers to the rows that the two answer differently are drawn, by a coin that is fair or
not.

`gate_pair.parquet` holds the answers of two prompts of movie-sentiment to its 1,487 test rows, by label alone.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ptpipeline.data.parquet import table_in
from ptpipeline.evaluation.paired import Asked, difference, mean_difference
from ptpipeline.evaluation.power import default_margin, rows_needed
from ptpipeline.gate.looks import look_at
from ptpipeline.task.policy import ChampionPolicy

PAIR = Path(__file__).parent / "gate_pair.parquet"
POLICY = ChampionPolicy()
SLIDE = 0.001  # by how much each night's challenger is worse than the champion, where data slowly rot

Rows = NDArray[np.float64]


class Pair(NamedTuple):
    """The labels of test rows, and what two prompts of equal recipe answered."""

    label: list[str]
    first: list[str]
    second: list[str]

    @classmethod
    def read(cls) -> "Pair":
        """The stored pair."""
        table = table_in(PAIR.read_bytes()).to_pydict()
        return cls(table["label"], table["first"], table["second"])

    def swapped(self, rows: int, dice: Generator) -> "Pair":
        """So many rows of it, on each of which the two change places by coin."""
        chosen, coins = dice.integers(len(self.label), size=rows), dice.random(rows) < 0.5
        answers = [
            (self.first[i], self.second[i]) if coin else (self.second[i], self.first[i])
            for i, coin in zip(chosen, coins, strict=True)
        ]
        return Pair([self.label[i] for i in chosen], [one for one, _ in answers], [other for _, other in answers])


class Results(NamedTuple):
    """Shares of the rows that any prompt of the recipe answers right, and that are open: each prompt tosses its coin
    there.

    Two even coins differ on half of the open rows, as often as the two real prompts do.
    """

    right: float
    open: float

    @classmethod
    def of(cls, pair: Pair) -> "Results":
        """What the pair says of its recipe."""
        first, second = (np.array(answers) == np.array(pair.label) for answers in (pair.first, pair.second))
        differ = float((first != second).mean())
        return cls(float((first & second).mean()) - differ / 2, 2 * differ)

    def split(self, rows: int, dice: Generator) -> tuple[Rows, NDArray[np.bool_]]:
        """A test split of so many rows: what every prompt answers, and which rows are open."""
        kind = dice.random(rows)
        return (kind < self.right).astype(np.float64), kind >= 1 - self.open

    def prompt(self, split: tuple[Rows, NDArray[np.bool_]], better: float, dice: Generator) -> Rows:
        """A prompt whose true accuracy is that of the even coin plus `better`: right or wrong on each row of
        the split.
        """
        answers, open_rows = split
        chance = np.clip(0.5 + better / self.open, 0, 1)
        return np.where(open_rows, dice.random(len(answers)) < chance, answers).astype(np.float64)


Rule = Callable[[Rows, Rows, Rows, int], bool]  # challenger, champion, anchor, look -> promoted?


def superior(challenger: Rows, champion: Rows, anchor: Rows, look: int) -> bool:
    """The default rule."""
    return _shown(challenger, champion, 0.0, look)


def not_inferior(challenger: Rows, champion: Rows, anchor: Rows, look: int) -> bool:
    """Non-inferiority with the margin that the number of rows gives, to the champion and to what last won by
    superiority.
    """
    return not_inferior_to_champion(challenger, champion, anchor, look) and _shown(
        challenger, anchor, _margin(len(anchor)), look
    )


def not_inferior_to_champion(challenger: Rows, champion: Rows, anchor: Rows, look: int) -> bool:
    """The same without the anchor."""
    return _shown(challenger, champion, _margin(len(champion)), look)


def at_five_percent(challenger: Rows, champion: Rows, anchor: Rows, look: int) -> bool:
    """The same test at 5 % every night, however often the rows were looked at."""
    return _shown(challenger, champion, 0.0, 1, spending=False)


def higher(challenger: Rows, champion: Rows, anchor: Rows, look: int) -> bool:
    """What other pipelines do: the higher figure wins."""
    return bool(challenger.mean() > champion.mean())


RULES: dict[str, Rule] = {
    "superiority": superior,
    "non-inferiority": not_inferior,
    "without anchor": not_inferior_to_champion,
    "5% every night": at_five_percent,
    "higher figure": higher,
}


def _shown(challenger: Rows, other: Rows, margin: float, look: int, spending: bool = True) -> bool:
    alpha = look_at(1, look, POLICY.budget).alpha if spending else POLICY.budget
    return (mean_difference(Asked("accuracy", margin=margin), challenger, other).p_value or 0.0) <= alpha


def _margin(rows: int) -> float:
    return default_margin(rows, POLICY.budget)


def equal_prompts(pair: Pair, args: argparse.Namespace, asked: Asked, trials: int) -> float:
    """Share of the trials in which one of two equal prompts passed for better at the first look, by the metric that is
    asked.
    """
    alpha, labels, promoted = look_at(1, 1, POLICY.budget).alpha, sorted(set(pair.label)), 0
    for trial in range(trials):
        drawn = pair.swapped(args.rows, np.random.default_rng([args.seed, 2, trial]))
        promoted += int((difference(asked, drawn.label, drawn.first, drawn.second, labels).p_value or 0.0) <= alpha)
    return promoted / trials


def one_night(results: Results, args: argparse.Namespace, rule: Rule, better: float, look: int = 1) -> float:
    """Share of the trials in which the challenger was promoted at that look."""
    promoted = 0
    for trial in range(args.trials):
        dice = np.random.default_rng([args.seed, trial])
        split = results.split(args.rows, dice)
        champion, challenger = results.prompt(split, 0.0, dice), results.prompt(split, better, dice)
        promoted += rule(challenger, champion, champion, look)
    return promoted / args.trials


class Year(NamedTuple):
    """Means over tasks: promotions, tasks with any, and by how much the true accuracy of production changed, at its
    lowest.
    """

    promotions: float
    any_promotion: float
    change: float
    lowest: float


def a_year(results: Results, args: argparse.Namespace, rule: Rule, slide: float) -> Year:
    """Nights on one test split, each with a challenger that is worse than the champion by `slide`."""
    found = [_nights(results, args, rule, (slide, task)) for task in range(args.tasks)]
    counts, ends = np.array([count for count, _ in found]), np.array([end for _, end in found])
    return Year(float(counts.mean()), float((counts > 0).mean()), float(ends.mean()), float(ends.min()))


def _nights(results: Results, args: argparse.Namespace, rule: Rule, case: tuple[float, int]) -> tuple[int, float]:
    slide, task = case
    dice = np.random.default_rng([args.seed, 1, task])
    split = results.split(args.rows, dice)
    champion = anchor = results.prompt(split, 0.0, dice)
    quality, promotions = 0.0, 0
    for night in range(1, args.nights + 1):
        challenger = results.prompt(split, quality - slide, dice)
        if rule(challenger, champion, anchor, night):
            if rule is not_inferior and superior(challenger, champion, anchor, night):
                anchor = challenger
            champion, quality, promotions = challenger, max(quality - slide, -results.open / 2), promotions + 1
    return promotions, quality


def rows_at(results: Results, args: argparse.Namespace, look: int, better: float) -> int:
    """Test rows with which a gain of `better` is seen four times in five at that look: counted, from where the formula
    points.
    """
    alpha = look_at(1, look, POLICY.budget).alpha
    rows = rows_needed(better, alpha, results.open / 2)
    while (
        one_night(
            results,
            argparse.Namespace(**{**vars(args), "rows": rows, "trials": min(args.trials, 500)}),
            superior,
            better,
            look,
        )
        < 0.8
    ):
        rows = round(rows * 1.05)
    return rows


def main() -> None:
    """Print the tables, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="nights of two equal prompts")
    parser.add_argument("--rows", type=int, default=2000, help="test rows")
    parser.add_argument("--nights", type=int, default=365, help="nights on one test split")
    parser.add_argument("--tasks", type=int, default=200, help="tasks that live through these nights")
    parser.add_argument("--gain", type=float, default=0.03, help="true gain that is to be seen")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pair, swapped = Pair.read(), {}
    for metric, trials in (
        ("accuracy", args.trials),
        ("macro_f1", args.trials // 10),
    ):  # the bootstrap takes half a second
        swapped[metric] = equal_prompts(pair, args, Asked(metric), trials)
        print(f"{swapped[metric]:.4f} of {trials} trials promoted one of two equal prompts by {metric}")
    results = Results.of(pair)
    print(f"any prompt is right on {results.right:.3f} of the rows, {results.open:.3f} are open; {args.rows} test rows")
    night = {name: one_night(results, args, rule, 0.0) for name, rule in RULES.items()}
    power = {name: one_night(results, args, rule, args.gain) for name, rule in RULES.items()}
    print(f"{'one night':18} {'wrong promotions':>17} {f'seen {args.gain:+.2f}':>12}")
    for name in RULES:
        print(f"{name:18} {night[name]:17.4f} {power[name]:12.4f}")
    needed = {look: rows_at(results, args, look, args.gain) for look in (1, 30, args.nights)}
    print(
        "rows needed to see it four times in five: "
        + ", ".join(f"{rows} at look {look}" for look, rows in needed.items())
    )
    equal = {name: a_year(results, args, rule, 0.0) for name, rule in RULES.items()}
    sliding = {name: a_year(results, args, rule, SLIDE) for name, rule in RULES.items()}
    print(
        f"{f'{args.nights} nights':18} {'wrong promotions':>17} {'tasks with any':>15} "
        f"{f'slide {SLIDE:g}: change':>20} {'lowest':>8}"
    )
    for name in RULES:
        print(
            f"{name:18} {equal[name].promotions:17.3f} {equal[name].any_promotion:15.3f} "
            f"{sliding[name].change:+20.4f} {sliding[name].lowest:+8.4f}"
        )
    print(
        json.dumps(
            {
                "wrong_promotions": swapped["accuracy"],
                "wrong_promotions_macro_f1": swapped["macro_f1"],
                "power": power["superiority"],
                "wrong_promotions_year": equal["superiority"].promotions,
                "naive_wrong_promotions": night["higher figure"],
                "naive_wrong_promotions_year": equal["higher figure"].promotions,
                "at_five_percent_year": equal["5% every night"].any_promotion,
                "trials": args.trials,
                "tasks": args.tasks,
                "nights": args.nights,
                "rows": args.rows,
                "rows_needed": {str(look): rows for look, rows in needed.items()},
                "discordant": results.open / 2,
                "slide": {name: year.change for name, year in sliding.items()},
                "lowest": {name: year.lowest for name, year in sliding.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
