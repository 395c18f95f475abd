"""What a version's virtual tokens are near to, and what such nearness is worth."""

from typing import Any

from flows.stages.context import Context
from flows.stages.ingest import ingest
from flows.stages.register import find_neighbours
from ptpipeline.errors import DataError
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.prompts.interpretation import MEASURES, Neighbours, Wayward
from ptpipeline.task.folder import find_task
from registry.versions.publish import attach


def rank_neighbours(context: Context, task: str, number: int) -> Neighbours:
    """Return the vocabulary tokens nearest to a version's virtual tokens.

    Raises DataError for an ensemble, whose members have neighbours of their own.
    """
    registry = context.registry
    artifact = read_artifact(registry.store, task, registry.ledger.version(task, number).digest)
    if artifact.manifest.members:
        raise DataError(
            f"{task}@{number} is an ensemble and has no virtual tokens itself; its members have neighbours of their own"
        )
    return find_neighbours(context, artifact)


def train_wayward(context: Context, task: str, number: int, text: str) -> Wayward:
    """Train the task again with a pull towards an unrelated text; the version's page shows the result from then on.

    Raises DataError for a prefix, a text without tokens, or a task with `gate.figures: quiet`.
    """
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.tuning.wayward import Aim, build_plain_job, run_wayward

    registry = context.registry
    version, declared = registry.ledger.version(task, number), find_task(context.settings.tasks, task)
    if declared.gate.figures == "quiet":
        raise DataError(
            f"task {task}: the experiment shows figures of its prompts on the test rows, which gate.figures: quiet "
            "withholds; run it in a task of the same data with gate.figures: open, under another name"
        )
    snapshot, base = ingest(context, declared), context.engine(declared.base_model).base
    job = build_plain_job(base, declared, snapshot, registry.store)
    test = job.text.rows(load_split(registry.store, snapshot, "test"))
    with context.watch(f"{task}: experiment"):
        experiment = run_wayward(base, job, test, Aim(text), context.report)
    attach(registry, version.digest, experiment)
    return experiment


def tabulate_neighbours(neighbours: Neighbours) -> list[dict[str, Any]]:
    """Return one line per virtual token: its neighbours by each measure."""
    return [
        {"token": place, **{measure: " ".join(near.token for near in token.nearest[measure]) for measure in MEASURES}}
        for place, token in enumerate(neighbours.tokens, 1)
    ]


def tabulate_wayward(experiment: Wayward) -> list[dict[str, Any]]:
    """Return one line per prompt that trained: how strongly it was pulled, what share landed, and its scores."""
    rows = []
    for prompt in (experiment.plain, *experiment.pulled):
        pair = prompt.compared
        difference = f"{pair.difference:+.4f} ({pair.lower:+.4f} to {pair.upper:+.4f})" if pair else ""
        landed = {f"landed by {measure}": f"{prompt.landed[measure]:.2f}" for measure in MEASURES}
        scores = {"dev": prompt.dev, "test": prompt.test, "against the plain prompt": difference}
        rows.append({"gamma": prompt.gamma, **landed, **scores})
    return rows
