"""The gate's decision: looks, checks, verdicts."""

from typing import ClassVar, Literal

from ptpipeline.records.base import Grown, Key, Number, Record, digest_of
from ptpipeline.records.reports import PairedDifference, SliceDifference, title_of

Figures = Literal["open", "quiet"]


class Look(Record):
    """One decision about a candidate by a set of test rows; `number` counts the looks at rows of that set.

    `alpha` is this look's share of the error budget `budget`; `spent` is the sum of this and all earlier shares.
    """

    test_set: Number
    number: Number
    alpha: float
    spent: float
    budget: float


class Check(Grown):
    """One line of a verdict: what was observed, what was required, and whether a failure blocks or only warns."""

    LATER: ClassVar = frozenset({"policy"})

    name: str
    passed: bool
    observed: str
    required: str
    policy: Literal["block", "warn"] = "block"

    @property
    def blocks(self) -> bool:
        """True if the verdict fails because of it."""
        return not self.passed and self.policy == "block"


class Reveal(Record):
    """The look that showed the figures of a refused candidate to a person, and who asked, by the name of the system's
    user.
    """

    by: str
    look: Look


class Verdict(Grown):
    """The gate's decision. It binds version, policy, test rows and champion by digest.

    `won` says what a passed candidate showed: that it is `superior` to the champion (to all baselines, if there was no
    champion), or that it is `not inferior`. `baselines` and `anchor` are the comparisons beside the champion,
    `measures` the numbers that the other checks judged. `figures` is the task's `gate.figures` when it was decided:
    `quiet` withholds all of these from people if the candidate was refused, until a `reveal` (gate/disclosure.py).
    """

    LATER: ClassVar = frozenset({"look", "won", "baselines", "anchor", "slices", "measures", "figures", "reveal"})

    task: str
    digest: Key
    gate_key: Key
    policy: str
    evaluation_key: Key
    test_digest: Key
    champion: Key | None
    comparison: PairedDifference | None
    checks: list[Check]
    passed: bool
    look: Look | None = None
    won: Literal["superior", "not inferior"] | None = None
    baselines: dict[str, PairedDifference] = {}
    anchor: PairedDifference | None = None
    slices: list[SliceDifference] = []
    measures: dict[str, float] = {}
    figures: Figures = "open"
    reveal: Reveal | None = None

    def verdict_digest(self) -> str:
        """Return the identity of the decision, as promotions cite it."""
        return digest_of(self.to_json())

    def comparisons(self) -> dict[str, PairedDifference]:
        """Return all comparisons by name: the champion, the anchor, and the baselines."""
        versions = {"champion": self.comparison, "anchor": self.anchor}
        return {name: pair for name, pair in versions.items() if pair is not None} | {
            title_of(name): pair for name, pair in self.baselines.items()
        }

    def failures(self) -> list[Check]:
        """Return the checks that made the verdict fail."""
        return [check for check in self.checks if check.blocks]

    def warnings(self) -> list[Check]:
        """Return the checks that failed without blocking."""
        return [check for check in self.checks if not check.passed and not check.blocks]
