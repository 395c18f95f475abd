"""What was trained already is claimed, with the intent that keeps a collection away from it."""

from pathlib import Path

import pytest
import stamina

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from flows.stages.chain import _summarise
from flows.stages.context import Context
from flows.stages.outcome import Candidate
from flows.stages.train import _stage_gang, claim_trained, keep_trained, name_current
from ptpipeline.errors import ArtifactError, ServiceUnavailable, SettingsError
from ptpipeline.prompts.artifact import read_artifact, write_artifact
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.versions import Promotion
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import prompt_prefix, tensors_key
from ptpipeline.task.recipe import CURRENT
from ptpipeline.task.task import Task
from ptpipeline.tuning.tune import TrainedTask
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import rollback
from tests.flows.stages.test_evidence import digest
from tests.flows.stages.test_promote import candidate
from tests.registry.signed import WORKER, signed


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


# ---------------------------------------------------------------- what was trained just now


class Away(FolderStore):
    """A folder that takes no tensors, for a moment or for good."""

    faults = 1

    def create(self, key: str, body: bytes) -> None:
        if self.faults and key.endswith("/prompt.safetensors"):
            self.faults -= 1
            raise ServiceUnavailable("the store does not answer")
        super().create(key, body)


class Forgetful(Ledger):
    """A ledger that does not answer when it is first asked to remember a training, or for a history."""

    faults = 1

    def save_tuned(self, *prompts: TunedPrompt) -> None:
        self._falter()
        super().save_tuned(*prompts)

    def history(self, task: str, alias: str | None = None) -> list[Promotion]:
        self._falter()
        return super().history(task, alias)

    def _falter(self) -> None:
        if self.faults:
            self.faults -= 1
            raise ServiceUnavailable("the ledger does not answer")


def a_training(seed: int) -> TrainedTask:
    return TrainedTask(an_artifact(a_task(), seed), [], a_request(a_task(), seed).tuned)


def test_store_and_ledger_that_are_away_for_a_moment_cost_no_training(context: Context, tmp_path: Path) -> None:
    store, ledger = Away(tmp_path / "store"), Forgetful(context.registry.ledger.url)
    tuned = keep_trained(Context(context.settings, Registry(ledger, store)), a_training(1))
    assert (store.faults, ledger.faults) == (0, 0)
    assert context.registry.ledger.tuned("mood", tuned.training_key) == tuned
    assert read_artifact(store, "mood", tuned.digest) == an_artifact(a_task(), 1)


def test_foreign_bytes_in_the_place_of_one_prompt_are_that_ones_error_alone(context: Context) -> None:
    context.registry.store.create(tensors_key("mood", an_artifact(a_task(), 1).digest), b"of somebody else")
    staged, refused = _stage_gang(context, {"mood": a_training(1), "topic": a_training(2)})
    assert (list(staged), list(refused)) == (["topic"], ["mood"])
    assert isinstance(refused["mood"], ArtifactError)


@pytest.mark.parametrize("why", ["away", "no key"])
def test_a_store_that_takes_nothing_ends_the_gang_after_all_were_tried(
    context: Context, tmp_path: Path, why: str
) -> None:
    """Nothing of it is remembered then: the rest, as another gang, would lose its training."""
    registry = signed(context.registry, None, WORKER)
    if why == "away":
        store = Away(tmp_path / "store")
        store.faults = 99
        registry = Registry(context.registry.ledger, store)
    refused = pytest.raises(ServiceUnavailable if why == "away" else SettingsError)
    with stamina.set_testing(True, attempts=1), refused:
        _stage_gang(Context(context.settings, registry), {"mood": a_training(1), "topic": a_training(2)})
    assert len(registry.ledger.intents()) == 2


def test_a_ledger_that_is_away_for_a_moment_turns_no_promotion_into_a_failure(context: Context) -> None:
    task = a_task()
    version, verdict = candidate(context, task)
    request, ledger = a_request(task, 1), Forgetful(context.registry.ledger.url)
    assert request.report is not None
    made = Candidate(request.tuned, request.report, verdict, version, None)
    assert _summarise(Registry(ledger, context.registry.store), task, made).version == version.number
    assert ledger.faults == 0


# ---------------------------------------------------------------- shared prompts


def test_a_shared_prompt_is_named_anew_unless_a_person_moved_away_from_it(context: Context) -> None:
    registry, task = context.registry, a_task("shared")
    for seed in (1, 2, 3):
        published(registry, task, seed)
    one, two, three = (registry.ledger.version("shared", number) for number in (1, 2, 3))
    assert [name_current(context, "shared", version).version for version in (one, two, one)] == [1, 2, 1]
    name_current(context, "shared", two)
    rollback(registry, "shared", Cause("ann", "complaints"), alias=CURRENT)
    assert name_current(context, "shared", two).actor == "ann"
    assert name_current(context, "shared", three).version == 3  # from which nobody moved away
