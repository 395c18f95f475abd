"""Where the checkpoint of a gang lies, part by part, and when the shared path of its members is left."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ptpipeline.errors import ServiceUnavailable
from ptpipeline.models.causal import CausalBase
from ptpipeline.storage import FolderStore, Stored
from ptpipeline.tuning import selfcheck
from ptpipeline.tuning.checkpoint import Checkpoint, Checkpoints
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Job
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import SECRET, job


@pytest.fixture(scope="module")
def base() -> CausalBase:
    return family("llama", torch.float32)


def quiet(line: str) -> None:
    """Nobody listens."""


# ---------------------------------------------------------------- checkpoints


class Silent(FolderStore):
    """A folder store that does not answer a read."""

    def read(self, key: str) -> Stored:
        raise ServiceUnavailable("the store does not answer")


def test_a_store_that_does_not_answer_lets_no_training_begin_anew(base: CausalBase, tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable):
        run_gang(base, [job(base, "a")], NoTracker(), quiet, Checkpoints(Silent(tmp_path), 60, SECRET))


def test_a_checkpoint_is_due_again_when_its_time_has_passed_since_the_last(base: CausalBase, tmp_path: Path) -> None:
    place = Checkpoint(FolderStore(tmp_path), "checkpoints/a", 0.2, SECRET)
    gang = run_gang(base, [job(base, "a", steps=2)], NoTracker(), quiet)
    time.sleep(0.2)
    assert place.due
    place.save(gang.members, gang.clock)
    assert not place.due


def test_a_checkpoint_that_stays_behind_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(FolderStore):
        def delete(self, key: str) -> None:
            raise ServiceUnavailable("the store does not answer")

    Checkpoint(Stuck(tmp_path), "checkpoints/a", 1, SECRET).clear()
    assert "which does no harm" in caplog.text


def test_checkpoints_of_every_gang_are_cleared(base: CausalBase, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    checkpoints = Checkpoints(store, 1, SECRET)
    places = [checkpoints.open(base, [job(base, name)], "shared") for name in "ab"]
    for place in places:
        store.create(place.key, b"state")
    checkpoints.clear()
    assert list(store.keys("checkpoints")) == []


def other_labels(one: Job) -> Job:
    labels = one.text.labels._replace(ids=((44,), (42, 43)))
    return one._replace(text=one.text._replace(labels=labels))


CHANGES: dict[str, Callable[[Job], Job]] = {
    "metric": lambda one: one._replace(
        task=one.task.model_copy(update={"gate": one.task.gate.model_copy(update={"metric": "macro_f1"})})
    ),
    "labels": other_labels,
    "recipe": lambda one: one._replace(task=one.task.model_copy(update={"template": "{text}!"})),
    "shared": lambda one: one._replace(shared=torch.nn.Parameter(torch.as_tensor(one.initial))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_gang_of_another_kind_has_another_place(base: CausalBase, tmp_path: Path, change: str) -> None:
    checkpoints, one = Checkpoints(FolderStore(tmp_path), 1, SECRET), job(base, "a")
    places = [checkpoints.open(base, [wanted], "shared").key for wanted in (one, CHANGES[change](one))]
    assert places[0] != places[1]


def test_a_gang_over_another_base_has_another_place(base: CausalBase, tmp_path: Path) -> None:
    checkpoints, one = Checkpoints(FolderStore(tmp_path), 1, SECRET), job(base, "a")
    others = [
        base,
        replace(base, ref=base.ref.model_copy(update={"fingerprint": "f" * 64})),
        replace(base, dtype=torch.bfloat16),
    ]
    assert len({checkpoints.open(other, [one], "shared").key for other in others}) == 3


def test_a_gang_under_another_engine_has_another_place(
    base: CausalBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, one = Checkpoints(FolderStore(tmp_path), 1, SECRET), job(base, "a")
    before = checkpoints.open(base, [one], "shared").key
    monkeypatch.setattr("ptpipeline.tuning.checkpoint.ENGINE_VERSION", 999)
    assert checkpoints.open(base, [one], "shared").key != before


# ---------------------------------------------------------------- the self-check


class OneForgotten(CausalBase):
    """A base whose cache holds one prompt of several otherwise than it is: the first, or the last."""

    wrong = 0

    def compute_prefix(self, prompts):  # type: ignore[no-untyped-def]
        changed = list(prompts)
        changed[self.wrong] = changed[self.wrong].flip(0)
        return super().compute_prefix(changed)


def forgetful(base: CausalBase, wrong: int, dtype: torch.dtype = torch.float32) -> OneForgotten:
    made = OneForgotten(family("llama", dtype).model, base.tokenizer, base.ref, dtype, 128)
    object.__setattr__(made, "wrong", wrong)
    return made


@pytest.mark.parametrize("wrong", [0, -1])
def test_one_member_that_disagrees_is_enough_to_leave_the_shared_path(base: CausalBase, wrong: int) -> None:
    one = forgetful(base, wrong)
    gang = run_gang(one, [job(one, "a", steps=1), job(one, "b", seed=1, steps=1)], NoTracker(), quiet)
    assert gang.check.figures["path"] == "concatenated"
    assert float(gang.check.figures["relative_error"]) > selfcheck.MAX_RELATIVE_ERROR


@pytest.fixture
def plain_bfloat16() -> Iterator[None]:
    """Multiply bfloat16 without oneDNN, which refuses it if it is limited to instructions that know no bfloat16."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.usefixtures("plain_bfloat16")
@pytest.mark.parametrize("wrong", [0, -1])
def test_one_member_that_points_elsewhere_is_enough_where_float32_does_not_fit(
    base: CausalBase, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    one = forgetful(base, wrong, torch.bfloat16)
    gang = run_gang(one, [job(one, "a", steps=1), job(one, "b", seed=1, steps=1)], NoTracker(), quiet)
    assert gang.check.figures["path"] == "concatenated"
    assert float(gang.check.figures["cosine"]) < selfcheck.MIN_COSINE


@pytest.mark.usefixtures("plain_bfloat16")
@pytest.mark.parametrize(("available", "figure"), [(0, "cosine"), (10**12, "relative_error")])
def test_the_self_check_is_exact_where_a_float32_copy_fits(
    base: CausalBase, monkeypatch: pytest.MonkeyPatch, available: int, figure: str
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    half = family("llama", torch.bfloat16)
    gang = run_gang(half, [job(half, "a", steps=1)], NoTracker(), quiet)
    assert set(gang.check.figures) == {figure, "path"}


@pytest.mark.usefixtures("plain_bfloat16")
def test_a_base_whose_layers_lie_outside_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    half = replace(family("llama", torch.bfloat16))
    half.__dict__["whole"] = False
    gang = run_gang(half, [job(half, "a", steps=1)], NoTracker(), quiet)
    assert set(gang.check.figures) == {"cosine", "path"}


def test_a_float32_base_is_checked_exactly_whatever_memory_there_is(
    base: CausalBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    gang = run_gang(base, [job(base, "a", steps=1)], NoTracker(), quiet)
    assert gang.check.figures["path"] == "shared"
    assert "relative_error" in gang.check.figures
