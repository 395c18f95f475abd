"""How often the gate errs, and which gains it detects: simulated from the per-row answers of two trained prompts.

`python -m benchmarks.gate_power --nights 365` prints tables, and one JSON object on its last line. In a trial of equal
prompts, the answers of the two prompts are swapped at random, row by row: every promotion is then wrong. For gains,
slides and years, a prompt's answers are drawn at random, on the rows that the two prompts answer differently, with a
fair or an unfair coin.

`gate_pair.parquet` holds the answers of two prompts of movie-sentiment to its 1,487 test rows, by label alone.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ptpipeline.data.parquet import read_table
from ptpipeline.evaluation.paired import Hypothesis, difference, mean_difference
from ptpipeline.evaluation.power import default_margin, rows_needed
from ptpipeline.gate.spending import Budget, look_at
from ptpipeline.task.policy import ChampionPolicy

PAIR = Path(__file__).parent / "gate_pair.parquet"
POLICY = ChampionPolicy()
FOR_EVER, WITH_RESERVE = Budget(POLICY.budget), Budget(POLICY.budget, POLICY.looks)
SLIDE = 0.001  # how much worse each night's challenger is than the champion, if the data slowly get worse

Rows = NDArray[np.float64]


class Pair(NamedTuple):
    """The labels of test rows, and the answers of two prompts of the same recipe."""

    label: list[str]
    first: list[str]
    second: list[str]

    @classmethod
    def read(cls) -> "Pair":
        """Read the stored pair."""
        table = read_table(PAIR.read_bytes()).to_pydict()
        return cls(table["label"], table["first"], table["second"])

    def swap(self, rows: int, dice: Generator) -> "Pair":
        """Draw that many rows, and swap the two answers of each with probability 1/2."""
        chosen, coins = dice.integers(len(self.label), size=rows), dice.random(rows) < 0.5
        answers = [
            (self.first[i], self.second[i]) if coin else (self.second[i], self.first[i])
            for i, coin in zip(chosen, coins, strict=True)
        ]
        return Pair([self.label[i] for i in chosen], [one for one, _ in answers], [other for _, other in answers])


class Split(NamedTuple):
    """A simulated test split: whether every prompt answers a row right (1) or wrong (0), and which rows are open."""

    answers: Rows
    open: NDArray[np.bool_]


class Recipe(NamedTuple):
    """The share of rows that every prompt of a recipe answers right, and the share of open rows.

    On an open row each prompt's answer is random. Two fair coins differ on half of the open rows; the shares are such
    that two prompts differ as often as the two real ones.
    """

    right: float
    open: float

    @classmethod
    def fit(cls, pair: Pair) -> "Recipe":
        """Estimate the shares from the two real prompts."""
        first, second = (np.array(answers) == np.array(pair.label) for answers in (pair.first, pair.second))
        differ = float((first != second).mean())
        return cls(float((first & second).mean()) - differ / 2, 2 * differ)

    def draw_split(self, rows: int, dice: Generator) -> Split:
        """Draw a test split of that many rows."""
        kind = dice.random(rows)
        return Split((kind < self.right).astype(np.float64), kind >= 1 - self.open)

    def draw_prompt(self, split: Split, better: float, dice: Generator) -> Rows:
        """Draw a prompt: right (1) or wrong (0) on each row, with the true accuracy of the fair coin plus `better`."""
        chance = np.clip(0.5 + better / self.open, 0, 1)
        return np.where(split.open, dice.random(len(split.answers)) < chance, split.answers).astype(np.float64)


class Night(NamedTuple):
    """What a rule decides on: the rows' results of three prompts, the number of this look at the test rows, and the
    error budget of all looks.
    """

    challenger: Rows
    champion: Rows
    anchor: Rows
    look: int
    budget: Budget = FOR_EVER


Rule = Callable[[Night], bool]  # promoted?


def superior(night: Night) -> bool:
    """The default rule."""
    return _proves(night.challenger, night.champion, 0.0, _alpha(night))


def not_inferior(night: Night) -> bool:
    """Non-inferiority to the champion and to the anchor, by the margin that the number of rows gives."""
    margin = _margin(len(night.anchor))
    return not_inferior_to_champion(night) and _proves(night.challenger, night.anchor, margin, _alpha(night))


def not_inferior_to_champion(night: Night) -> bool:
    """The same without the anchor."""
    return _proves(night.challenger, night.champion, _margin(len(night.champion)), _alpha(night))


def at_five_percent(night: Night) -> bool:
    """Superiority at 5 % every night, no matter how many looks there were."""
    return _proves(night.challenger, night.champion, 0.0, POLICY.budget)


def higher(night: Night) -> bool:
    """What other pipelines do: the higher figure wins."""
    return bool(night.challenger.mean() > night.champion.mean())


RULES: dict[str, Rule] = {
    "superiority": superior,
    "non-inferiority": not_inferior,
    "without anchor": not_inferior_to_champion,
    "5% every night": at_five_percent,
    "higher figure": higher,
}


def _alpha(night: Night) -> float:
    return look_at(1, night.look, night.budget).alpha


def _proves(challenger: Rows, other: Rows, margin: float, alpha: float) -> bool:
    return (mean_difference(Hypothesis("accuracy", margin=margin), challenger, other).p_value or 0.0) <= alpha


def _margin(rows: int) -> float:
    return default_margin(rows, POLICY.budget)


def promote_equal(pair: Pair, args: argparse.Namespace, metric: str, trials: int) -> float:
    """Return the share of trials in which one of two equal prompts passed as better at the first look."""
    alpha, labels, promoted = look_at(1, 1, FOR_EVER).alpha, sorted(set(pair.label)), 0
    for trial in range(trials):
        drawn = pair.swap(args.rows, np.random.default_rng([args.seed, 2, trial]))
        compared = difference(Hypothesis(metric), drawn.label, drawn.first, drawn.second, labels)
        promoted += int((compared.p_value or 0.0) <= alpha)
    return promoted / trials


class Turn(NamedTuple):
    """Which look it is, and how the budget of all looks is spent."""

    look: int = 1
    budget: Budget = FOR_EVER


FIRST = Turn()


def play_night(recipe: Recipe, args: argparse.Namespace, rule: Rule, better: float, turn: Turn = FIRST) -> float:
    """Return the share of trials in which a challenger that is better by `better` was promoted at that look."""
    promoted = 0
    for trial in range(args.trials):
        dice = np.random.default_rng([args.seed, trial])
        split = recipe.draw_split(args.rows, dice)
        champion, challenger = recipe.draw_prompt(split, 0.0, dice), recipe.draw_prompt(split, better, dice)
        promoted += rule(Night(challenger, champion, champion, *turn))
    return float(promoted / args.trials)


class Year(NamedTuple):
    """Means over tasks: promotions, share of tasks with any, change of production's true accuracy, and its minimum."""

    promotions: float
    any_promotion: float
    change: float
    lowest: float


def play_year(recipe: Recipe, args: argparse.Namespace, rule: Rule, slide: float) -> Year:
    """Simulate nights on one test split, each with a challenger that is worse than the champion by `slide`."""
    tasks = [_play_task(recipe, args, rule, slide, task) for task in range(args.tasks)]
    counts, changes = np.array([count for count, _ in tasks]), np.array([change for _, change in tasks])
    return Year(float(counts.mean()), float((counts > 0).mean()), float(changes.mean()), float(changes.min()))


def _play_task(recipe: Recipe, args: argparse.Namespace, rule: Rule, slide: float, task: int) -> tuple[int, float]:
    """The number of promotions, and the change of the champion's true accuracy."""
    dice = np.random.default_rng([args.seed, 1, task])
    split = recipe.draw_split(args.rows, dice)
    champion = anchor = recipe.draw_prompt(split, 0.0, dice)
    quality, promotions = 0.0, 0
    for look in range(1, args.nights + 1):
        night = Night(recipe.draw_prompt(split, quality - slide, dice), champion, anchor, look)
        if rule(night):
            if rule is not_inferior and superior(night):
                anchor = night.challenger
            champion, quality, promotions = night.challenger, max(quality - slide, -recipe.open / 2), promotions + 1
    return promotions, quality


def count_rows(recipe: Recipe, args: argparse.Namespace, turn: Turn) -> int:
    """Return the test rows with which the gain is detected four times in five at that look.

    It starts with the formula's number and adds rows until simulated nights agree.
    """
    rows = rows_needed(args.gain, look_at(1, *turn).alpha, recipe.open / 2)
    while play_night(recipe, _with_rows(args, rows), superior, args.gain, turn) < 0.8:
        rows = round(rows * 1.05)
    return rows


def _with_rows(args: argparse.Namespace, rows: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "rows": rows, "trials": min(args.trials, 500)})


class Figures(NamedTuple):
    """All that is simulated; by rule, metric or look."""

    recipe: Recipe
    equal_by_metric: dict[str, float]
    wrong: dict[str, float]
    power: dict[str, float]
    rows_needed: dict[int, int]
    rows_needed_with_reserve: dict[int, int]
    equal: dict[str, Year]
    sliding: dict[str, Year]


def simulate(args: argparse.Namespace) -> Figures:
    """Simulate everything, and print the tables on the way."""
    pair = Pair.read()
    equal_by_metric = {}
    for metric, trials in (
        ("accuracy", args.trials),
        ("macro_f1", args.trials // 10),
    ):  # macro F1 needs a slow bootstrap
        equal_by_metric[metric] = promote_equal(pair, args, metric, trials)
        print(f"{equal_by_metric[metric]:.4f} of {trials} trials promoted one of two equal prompts by {metric}")
    recipe = Recipe.fit(pair)
    print(f"every prompt is right on {recipe.right:.3f} of the rows, {recipe.open:.3f} are open; {args.rows} test rows")
    wrong = {name: play_night(recipe, args, rule, 0.0) for name, rule in RULES.items()}
    power = {name: play_night(recipe, args, rule, args.gain) for name, rule in RULES.items()}
    _print_night(args, wrong, power)
    needed = {look: count_rows(recipe, args, Turn(look)) for look in (1, POLICY.looks, args.nights)}
    before = {look: count_rows(recipe, args, Turn(look, WITH_RESERVE)) for look in (1, POLICY.looks)}
    for rows_by_look, until in ((needed, "for ever"), (before, f"with a reserve after {POLICY.looks} looks")):
        listed = ", ".join(f"{rows} at look {look}" for look, rows in rows_by_look.items())
        print(f"rows needed to see it four times in five, {until}: {listed}")
    equal = {name: play_year(recipe, args, rule, 0.0) for name, rule in RULES.items()}
    sliding = {name: play_year(recipe, args, rule, SLIDE) for name, rule in RULES.items()}
    _print_year(args, equal, sliding)
    return Figures(recipe, equal_by_metric, wrong, power, needed, before, equal, sliding)


def _print_night(args: argparse.Namespace, wrong: dict[str, float], power: dict[str, float]) -> None:
    print(f"{'one night':18} {'wrong promotions':>17} {f'seen {args.gain:+.2f}':>12}")
    for name in RULES:
        print(f"{name:18} {wrong[name]:17.4f} {power[name]:12.4f}")


def _print_year(args: argparse.Namespace, equal: dict[str, Year], sliding: dict[str, Year]) -> None:
    print(
        f"{f'{args.nights} nights':18} {'wrong promotions':>17} {'tasks with any':>15} "
        f"{f'slide {SLIDE:g}: change':>20} {'lowest':>8}"
    )
    for name in RULES:
        print(
            f"{name:18} {equal[name].promotions:17.3f} {equal[name].any_promotion:15.3f} "
            f"{sliding[name].change:+20.4f} {sliding[name].lowest:+8.4f}"
        )


def report(args: argparse.Namespace, figures: Figures) -> dict[str, Any]:
    """Return the figures under the names that the last line prints."""
    return {
        "wrong_promotions": figures.equal_by_metric["accuracy"],
        "wrong_promotions_macro_f1": figures.equal_by_metric["macro_f1"],
        "power": figures.power["superiority"],
        "wrong_promotions_year": figures.equal["superiority"].promotions,
        "naive_wrong_promotions": figures.wrong["higher figure"],
        "naive_wrong_promotions_year": figures.equal["higher figure"].promotions,
        "at_five_percent_year": figures.equal["5% every night"].any_promotion,
        "trials": args.trials,
        "tasks": args.tasks,
        "nights": args.nights,
        "rows": args.rows,
        "rows_needed": {str(look): rows for look, rows in figures.rows_needed.items()},
        "rows_needed_with_reserve": {str(look): rows for look, rows in figures.rows_needed_with_reserve.items()},
        "discordant": figures.recipe.open / 2,
        "slide": {name: year.change for name, year in figures.sliding.items()},
        "lowest": {name: year.lowest for name, year in figures.sliding.items()},
    }


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="nights of two equal prompts")
    parser.add_argument("--rows", type=int, default=2000, help="test rows")
    parser.add_argument("--nights", type=int, default=365, help="nights on one test split")
    parser.add_argument("--tasks", type=int, default=200, help="tasks that have these nights")
    parser.add_argument("--gain", type=float, default=0.03, help="true gain to detect")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Simulate, print the tables, then the figures as one JSON object on the last line."""
    args = parse_options()
    print(json.dumps(report(args, simulate(args))))


if __name__ == "__main__":
    main()
