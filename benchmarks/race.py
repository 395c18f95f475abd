"""Two promoters that race for one alias, and whether anything of what they were told is lost.

Two processes promote versions of their own to one alias, `--races` times. Every second time both stand behind the
same head when they append; else they only start together. A promotion is overwritten where the history does not hold
the row that was acknowledged, where a second row took its number, or where pointer, history objects or alias end up
elsewhere.
"""

from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

from benchmarks.seeding import Addresses, task_of
from ptpipeline.errors import PromotionConflict
from ptpipeline.records import Promotion
from ptpipeline.storage.keys import history_key, pointer_key
from registry.failpoints import watch
from registry.registry import Registry
from registry.versions.projection import pointer_in
from registry.versions.promotion import Cause, promote

RACED = "canary"
PATIENCE = 120  # seconds that one racer waits for the other


class Outcome(NamedTuple):
    """What one racer was told: the promotions that were acknowledged, and how often it conflicted."""

    won: list[str]
    conflicts: int


class Race(NamedTuple):
    """What both racers need: where, which task, how often, and the barrier at which they meet."""

    addresses: Addresses
    task: str
    races: int
    barrier: Barrier


def race(addresses: Addresses, registry: Registry, races: int) -> dict[str, Any]:
    """Two processes promote at once, over and over; then ledger, store and MLflow are compared with what they were
    told.
    """
    context = get_context("spawn")
    task, barrier = task_of(0), context.Barrier(2)
    published = [version.number for version in registry.ledger.versions(task.name, limit=None)]
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    racers = [
        context.Process(target=_racer, args=(Race(addresses, task.name, races, barrier), own, pipe[1]))
        for own, pipe in zip((published[:2], published[2:4]), pipes, strict=True)
    ]
    for racer in racers:
        racer.start()
    told: list[Outcome] = [pipe[0].recv() for pipe in pipes if pipe[0].poll(PATIENCE + 2 * races)]
    for racer in racers:
        racer.join(PATIENCE)
    if len(told) < len(racers) or any(racer.exitcode for racer in racers):
        raise SystemExit("a racer did not come to its end; its traceback stands above")
    acknowledged = [Promotion.model_validate_json(row) for outcome in told for row in outcome.won]
    lost = overwritten(acknowledged, registry.ledger.history(task.name, RACED)) + len(disagreeing(registry, task.name))
    return {
        "races": races,
        "won": len(acknowledged),
        "conflicts": sum(outcome.conflicts for outcome in told),
        "overwritten": lost,
    }


def _racer(race: Race, own: Sequence[int], pipe: Any) -> None:
    """Promote one of the own versions that the alias does not name, `races` times."""
    registry, task, conflicts = race.addresses.open(), task_of(int(race.task.rpartition("-")[2])), 0
    won: list[str] = []
    together = False

    def meet(step: str) -> None:
        if together and step == "promotion checked":
            race.barrier.wait(PATIENCE)

    watch(meet)
    for index in range(race.races):
        together = False
        race.barrier.wait(PATIENCE)
        head = registry.ledger.head(race.task, RACED)
        number = next(number for number in own if head is None or head.version != number)
        race.barrier.wait(PATIENCE)
        together = index % 2 == 0
        try:
            won.append(
                promote(registry, task, number, Cause(f"racer {own[0]}", f"race {index}"), RACED).model_dump_json()
            )
        except PromotionConflict:
            conflicts += 1
    pipe.send(Outcome(won, conflicts))


def overwritten(acknowledged: Sequence[Promotion], history: Sequence[Promotion]) -> int:
    """Promotions that were acknowledged and do not stand in the history as they were, or that stand there and were not;
    gaps too.
    """
    rows = {row.seq: row for row in history}
    missing = sum(rows.get(row.seq) != row for row in acknowledged)
    shared = len(acknowledged) - len({row.seq for row in acknowledged})
    chain = sum(
        (row.seq, row.previous) != (seq, history[seq - 2].version if seq > 1 else None)
        for seq, row in enumerate(history, 1)
    )
    return missing + shared + chain + max(0, len(history) - len(acknowledged))


def disagreeing(registry: Registry, task: str) -> list[str]:
    """What does not show the history of the raced alias as the ledger has it: history objects, pointer, MLflow
    alias.
    """
    history = registry.ledger.history(task, RACED)
    head, store = history[-1], registry.store
    found = [
        f"history {row.seq}"
        for row in history
        if Promotion.model_validate_json(store.read(history_key(task, RACED, row.seq)).body) != row
    ]
    if pointer_in(store.read(pointer_key(task, RACED)).body) != head:
        found.append("pointer")
    if registry.mlflow and registry.mlflow.digests(task)[registry.mlflow.aliases(task)[RACED]] != head.digest:
        found.append("MLflow alias")
    return found
