"""What was trained already is claimed, with the intent that keeps a collection away from it."""

from pathlib import Path

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact
from flows.stages.context import Context
from flows.stages.train import claim_trained
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import prompt_prefix
from ptpipeline.task.task import Task
from registry.registry import Registry
from tests.flows.stages.test_evidence import digest


class Vanishing(FolderStore):
    """A folder whose objects are gone once somebody saw that they are there."""

    def exists(self, key: str) -> bool:
        there = super().exists(key)
        self.delete(key)
        return there


def trained(context: Context, task: Task) -> str:
    write_artifact(context.registry.store, an_artifact(task, 1))
    tuned = a_request(task, 1).tuned
    context.registry.ledger.save_tuned(tuned)
    return tuned.training_key


def test_what_was_trained_is_claimed_with_an_intent(context: Context) -> None:
    task = a_task()
    found = claim_trained(context, task.name, trained(context, task))
    assert found is not None
    assert [intent.digest for intent in context.registry.ledger.intents()] == [found.digest]


def test_what_is_collected_before_it_is_claimed_is_trained_anew(context: Context, tmp_path: Path) -> None:
    task = a_task()
    key = trained(context, task)
    meddled = Context(context.settings, Registry(context.registry.ledger, Vanishing(tmp_path / "store")))
    assert claim_trained(meddled, task.name, key) is None


def test_what_lost_its_manifest_is_trained_anew(context: Context) -> None:
    task = a_task()
    key = trained(context, task)
    context.registry.store.delete(f"{prompt_prefix(task.name, digest(task, 1))}/manifest.json")
    assert claim_trained(context, task.name, key) is None
    assert context.registry.ledger.intents() == []


class Faltering(FolderStore):
    """A folder that does not answer to its next question whether something is there."""

    faults = 1

    def exists(self, key: str) -> bool:
        if self.faults:
            self.faults -= 1
            raise ServiceUnavailable("the store does not answer")
        return super().exists(key)


def test_a_store_that_is_away_for_a_moment_costs_no_training(context: Context, tmp_path: Path) -> None:
    task = a_task()
    key = trained(context, task)
    store = Faltering(tmp_path / "store")
    assert claim_trained(Context(context.settings, Registry(context.registry.ledger, store)), task.name, key)
    assert store.faults == 0
