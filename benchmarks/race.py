"""Two promoters that race for one alias, and whether any acknowledged promotion is lost.

Two processes promote versions of their own to one alias, `--races` times. In every second race both have read the same
head when they append; in the others they only start together. A promotion counts as overwritten if the history does not
hold the row that was acknowledged, if a second row took its number, or if pointer, history objects or MLflow's alias
differ from the ledger.
"""

from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

from benchmarks.fixtures.children import end_with_parent
from benchmarks.seeding import Addresses, task_of
from ptpipeline.errors import PromotionConflict
from ptpipeline.records.versions import Promotion
from ptpipeline.storage.keys import history_key, pointer_key
from registry.failpoints import watch
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.projection import pointer_in
from registry.versions.promotion import promote

ALIAS = "canary"
PATIENCE_SECONDS = 120  # one racer waits this long for the other


class Outcome(NamedTuple):
    """One racer's answers: the promotions that were acknowledged to it, as JSON, and how often it conflicted."""

    won: list[str]
    conflicts: int


class Race(NamedTuple):
    """What both racers share: the registry, the task, the number of races, and the barrier at which they meet."""

    addresses: Addresses
    task: str
    races: int
    barrier: Barrier


def race(addresses: Addresses, registry: Registry, races: int) -> dict[str, Any]:
    """Let two processes promote at once, many times; then compare ledger, store and MLflow with their answers."""
    context = get_context("spawn")
    task, barrier = task_of(0), context.Barrier(2)
    published = [version.number for version in registry.ledger.versions(task.name, limit=None)]
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    racers = [
        context.Process(target=_promote_often, args=(Race(addresses, task.name, races, barrier), own, pipe[1]))
        for own, pipe in zip((published[:2], published[2:4]), pipes, strict=True)
    ]
    for racer in racers:
        racer.start()
    outcomes: list[Outcome] = [pipe[0].recv() for pipe in pipes if pipe[0].poll(PATIENCE_SECONDS + 2 * races)]
    for racer in racers:
        racer.join(PATIENCE_SECONDS)
    if len(outcomes) < len(racers) or any(racer.exitcode for racer in racers):
        raise SystemExit("a racer did not finish; its traceback is printed above")
    acknowledged = [Promotion.model_validate_json(row) for outcome in outcomes for row in outcome.won]
    in_ledger = count_overwritten(acknowledged, registry.ledger.history(task.name, ALIAS))
    return {
        "races": races,
        "won": len(acknowledged),
        "conflicts": sum(outcome.conflicts for outcome in outcomes),
        "overwritten": in_ledger + len(find_disagreements(registry, task.name)),
    }


def _promote_often(race: Race, own: Sequence[int], pipe: Any) -> None:
    """Promote, `races` times, that one of its own versions which the alias does not name."""
    end_with_parent()
    registry, task, conflicts = race.addresses.open(), task_of(int(race.task.rpartition("-")[2])), 0
    won: list[str] = []
    together = False

    def meet(step: str) -> None:
        if together and step == "promotion checked":
            race.barrier.wait(PATIENCE_SECONDS)

    watch(meet)
    for index in range(race.races):
        together = False
        race.barrier.wait(PATIENCE_SECONDS)
        head = registry.ledger.head(race.task, ALIAS)
        number = next(number for number in own if head is None or head.version != number)
        race.barrier.wait(PATIENCE_SECONDS)
        together = index % 2 == 0
        try:
            won.append(
                promote(registry, task, number, Cause(f"racer {own[0]}", f"race {index}"), ALIAS).model_dump_json()
            )
        except PromotionConflict:
            conflicts += 1
    pipe.send(Outcome(won, conflicts))


def count_overwritten(acknowledged: Sequence[Promotion], history: Sequence[Promotion]) -> int:
    """Count acknowledged promotions that the history lacks or changed, rows that were not acknowledged, and gaps."""
    rows = {row.seq: row for row in history}
    missing = sum(rows.get(row.seq) != row for row in acknowledged)
    shared = len(acknowledged) - len({row.seq for row in acknowledged})
    chain = sum(
        (row.seq, row.previous) != (seq, history[seq - 2].version if seq > 1 else None)
        for seq, row in enumerate(history, 1)
    )
    return missing + shared + chain + max(0, len(history) - len(acknowledged))


def find_disagreements(registry: Registry, task: str) -> list[str]:
    """Return what differs from the ledger's history of the alias: history objects, pointer, MLflow's alias."""
    history = registry.ledger.history(task, ALIAS)
    head, store = history[-1], registry.store
    differing = [
        f"history {row.seq}"
        for row in history
        if Promotion.model_validate_json(store.read(history_key(task, ALIAS, row.seq)).body) != row
    ]
    if pointer_in(store.read(pointer_key(task, ALIAS)).body) != head:
        differing.append("pointer")
    if registry.mlflow and registry.mlflow.digests(task)[registry.mlflow.aliases(task)[ALIAS]] != head.digest:
        differing.append("MLflow alias")
    return differing
