"""What `ptp` prints of a run's outcomes: a table that fits, then a sentence and the page of each task."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.cli.app import NO
from flows.cli.render import print_table
from flows.cli.terminal import say
from flows.stages.outcome import Outcome, tabulate


def print_outcome(outcome: Outcome, as_json: bool) -> int:
    """Print what the run of one task came to; return the exit code of whoever ran it: 4 if the gate refused it."""
    print_outcomes([outcome], as_json)
    return NO if outcome.refused else 0


def print_outcomes(outcomes: Sequence[Outcome | Mapping[str, Any]], as_json: bool) -> None:
    """Print outcomes, or the rows of a run's table; what a run's table does not hold is left out."""
    if as_json:
        print_table(outcomes, as_json)
        return
    given = [tabulate(row) if isinstance(row, Outcome) else row for row in outcomes]
    rows = [{name: value for name, value in row.items() if value is not None} for row in given]
    print_table([_summarise(row) for row in rows], as_json, "no tasks")
    for row in rows:
        if row.get("reason"):
            say(f"{row['task']}: {row['reason']}")
        if row.get("page"):
            say(f"  {row['page']}")


def _summarise(row: Mapping[str, Any]) -> dict[str, Any]:
    difference = None
    if "delta" in row:
        bounds = f" ({row['lower']:+.4f} to {row['upper']:+.4f})" if "lower" in row and "upper" in row else ""
        difference = f"{row['delta']:+.4f}{bounds}"
    figure = f"{row['metric']} {row['candidate']:.4f}" if "candidate" in row else None
    return {
        "task": row["task"],
        "status": row.get("status"),
        "version": row.get("version"),
        "candidate": figure,
        "champion": row.get("champion"),
        "difference": difference,
        "tokens": f"{row['tokens']:,}" if "tokens" in row else None,
        "seconds": f"{row['seconds']:.1f}" if "seconds" in row else None,
    }
