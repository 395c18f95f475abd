"""What a version's virtual tokens are near to, and what such nearness is worth."""

from typing import Any

from flows.stages.context import Context
from ptpipeline.errors import DataError
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.prompts.interpretation import MEASURES, Neighbours, Wayward
from ptpipeline.task.task import find_task
from registry.versions.publish import attach


class Interpreting(Context):
    """Readings of a version, which say of themselves how little they prove."""

    def neighbours(self, task: str, number: int) -> Neighbours:
        """The vocabulary tokens nearest to its virtual tokens; DataError for an ensemble, whose members have
        their own.
        """
        from ptpipeline.prompts.neighbours import find_neighbours
        from ptpipeline.prompts.tensors import unpack

        artifact = read_artifact(self.registry.store, task, self.registry.ledger.version(task, number).digest)
        if artifact.manifest.members:
            raise DataError(
                f"{task}@{number} is an ensemble, whose members have neighbours of their own: it has no "
                "virtual tokens itself"
            )
        base = self.engine(artifact.manifest.base_model.name).base
        return find_neighbours(base, unpack(artifact, base.ref))

    def wayward(self, task: str, number: int, text: str) -> Wayward:
        """The task trained anew with a pull towards an unrelated text; the version's report tells of it from then on.

        Raises DataError for a prefix, or a text without tokens.
        """
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.tuning.wayward import Aim, build_plain_job, run_wayward

        version, declared = self.registry.ledger.version(task, number), find_task(self.settings.tasks, task)
        snapshot, base = self.ingest(declared), self.engine(declared.base_model).base
        job = build_plain_job(base, declared, snapshot, self.registry.store)
        found = run_wayward(
            base, job, job.text.rows(load_split(self.registry.store, snapshot, "test")), Aim(text), self.report
        )
        attach(self.registry, version.digest, found)
        return found


def neighbour_rows(found: Neighbours) -> list[dict[str, Any]]:
    """One line per virtual token: its neighbours by each measure."""
    return [
        {"token": place, **{measure: " ".join(near.token for near in token.nearest[measure]) for measure in MEASURES}}
        for place, token in enumerate(found.tokens, 1)
    ]


def wayward_rows(found: Wayward) -> list[dict[str, Any]]:
    """One line per prompt that trained: how strongly it was pulled, what share landed, what it scores."""
    rows = []
    for one in (found.plain, *found.pulled):
        pair = one.compared
        difference = f"{pair.difference:+.4f} ({pair.lower:+.4f} to {pair.upper:+.4f})" if pair else ""
        landed = {f"landed by {measure}": f"{one.landed[measure]:.2f}" for measure in MEASURES}
        rows.append(
            {"gamma": one.gamma, **landed, "dev": one.dev, "test": one.test, "against the plain prompt": difference}
        )
    return rows
