"""The pull towards a text: nothing without strength, everything with much of it."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ptpipeline.data.snapshot import load_split, take_snapshot
from ptpipeline.data.tokens import EncodedRow, FreeText, LabelTokens
from ptpipeline.errors import DataError
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import SoftPrompt
from ptpipeline.models.load import load_base
from ptpipeline.prompts.initialise import tokenize_text
from ptpipeline.prompts.interpretation import MEASURES, WARNING, Wayward
from ptpipeline.prompts.tensors import round_to_stored
from ptpipeline.records.prompts import Generation
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from ptpipeline.task.folder import find_task
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Gate
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Job, Pull
from ptpipeline.tuning.tracker import NoTracker
from ptpipeline.tuning.wayward import Aim, build_plain_job, run_wayward
from tests.models.families import family
from tests.tiny import tiny_project
from tests.tuning.jobs import SECRET, job

TEXT = "the scene was dull"


class Ready(NamedTuple):
    """The tiny base, and a job on its sentences with the test rows."""

    base: FrozenBase
    job: Job
    test: list[EncodedRow]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder: Path = tmp_path_factory.mktemp("wayward")
    tasks, store = tiny_project(folder), FolderStore(folder / "store")
    base = load_base(prepare_base("tiny", Settings(home=folder / "home", tasks=tasks)), "float32")
    task = find_task(tasks, "tiny-sentiment")
    task = task.model_copy(
        update={"tune": task.tune.model_copy(update={"steps": 40, "eval_every": 10})}
    )  # a pulled prompt has a way to go
    snapshot = take_snapshot(task, store, folder / "home")
    plain = build_plain_job(base, task, snapshot, store)
    return Ready(base, plain, plain.text.rows(load_split(store, snapshot, "test")))


@pytest.fixture(scope="module")
def found(ready: Ready) -> Wayward:
    return run_wayward(ready.base, ready.job, ready.test, Aim(TEXT, (0.0, 50.0)), lambda line: None)


def trained(base: FrozenBase, one: Job) -> SoftPrompt:
    """The last prompt of a job that trains alone, before it is rounded."""
    member = run_gang(base, [one], NoTracker(), lambda line: None).members[0]
    assert member.error is None
    return member.parameterisation.build_prompt().detach()


@pytest.mark.parametrize("method", ["prompt", "residual"])
def test_a_pull_without_strength_is_the_plain_training_bit_for_bit(method: str) -> None:
    base = family("llama", torch.float32)
    plain = job(base, "plain", method=method)
    pulled = plain._replace(pull=Pull(base.embed(torch.tensor([1, 2, 3])).detach(), 0.0))
    assert torch.equal(trained(base, pulled), trained(base, plain))


def test_a_pull_adds_its_gradient_to_the_loss() -> None:
    """The first step of Adam goes by the sign of the gradient, so that a strong pull decides it."""
    base = family("llama")
    plain = job(base, "pulled", steps=1, warmup_steps=0, max_grad_norm=1e9, eval_every=1, learning_rate=0.01)
    towards = base.embed(torch.tensor([1, 2, 3])).detach()
    moved = trained(base, plain._replace(pull=Pull(towards, 1e6))) - plain.initial
    assert torch.equal(moved.sign(), (towards - plain.initial).sign())


def test_the_penalty_is_the_squared_distance_per_virtual_token() -> None:
    towards, prompt = (
        torch.zeros(2, 3),
        torch.tensor([[9.0, 9, 9], [1, 2, 2], [0, 0, 4]]),
    )  # BOS, then two virtual tokens
    assert Pull(towards, 0.5).compute_penalty(prompt).item() == 0.5 * (9 + 16) / 2


def test_the_loss_on_the_curve_holds_the_penalty() -> None:
    base = family("llama")
    plain = job(base, "curve")
    losses = [
        run_gang(base, [one], NoTracker(), lambda line: None).members[0].curve[0].loss
        for one in (plain, plain._replace(pull=Pull(plain.initial + 1, 2.0)))
    ]
    assert losses[1] - losses[0] == pytest.approx(2.0 * 32)


def test_checkpoints_of_pulled_and_plain_training_lie_apart(tmp_path: Path) -> None:
    base, places = family("llama"), Checkpoints(FolderStore(tmp_path), 1, SECRET)
    plain = job(base, "plain")
    keys = [
        places.open(base, [plain._replace(pull=pull)], "shared").key
        for pull in (None, Pull(plain.initial, 0.0), Pull(plain.initial, 1.0))
    ]
    assert len(set(keys)) == 3


def test_a_strong_pull_lands_on_the_text(ready: Ready, found: Wayward) -> None:
    assert found.pulled[1].landed["euclidean"] == found.pulled[1].landed["cosine"] == 1.0
    assert found.pulled[1].distance < found.plain.distance / 5


def test_without_strength_nothing_lands_and_nothing_is_lost(found: Wayward) -> None:
    without = found.pulled[0]
    assert without.landed == found.plain.landed == dict.fromkeys(MEASURES, 0.0)
    assert without.compared is not None
    assert (without.compared.difference, without.test) == (0.0, found.plain.test)


def test_the_difference_is_that_of_the_two_test_metrics(ready: Ready, found: Wayward) -> None:
    compared = found.pulled[1].compared
    assert compared is not None
    assert compared.difference == pytest.approx(found.pulled[1].test - found.plain.test)
    assert compared.rows == found.test_rows == len(ready.test)


def test_the_text_is_repeated_over_the_virtual_tokens_and_shown(ready: Ready, found: Wayward) -> None:
    count = ready.job.tune.num_virtual_tokens
    assert len(found.tokens) == count
    assert "".join(found.tokens).replace("▁", " ").startswith(TEXT[:8])


def test_the_text_itself_lies_on_its_tokens(found: Wayward) -> None:
    assert found.text_landed["euclidean"] == found.text_landed["cosine"] == 1.0
    assert found.text_landed["dot"] >= found.pulled[1].landed["dot"]


def test_prompts_are_read_after_their_last_step(ready: Ready, found: Wayward) -> None:
    """Not where dev was best, which on these rows it is long before, and not where a recipe would have stopped
    early.
    """
    member = run_gang(ready.base, [ready.job], NoTracker(), lambda line: None).members[0]
    last, ids = (
        round_to_stored(member.parameterisation.build_prompt(), "float16"),
        tokenize_text(ready.base, TEXT, ready.job.tune.num_virtual_tokens),
    )
    assert isinstance(last, torch.Tensor)
    assert member.best_step < member.step == found.steps
    assert found.plain.distance == pytest.approx(
        float((last.float() - ready.base.embed(ids)).norm(dim=1).mean()), rel=1e-4
    )


def test_the_record_reads_back_with_its_warning(found: Wayward) -> None:
    assert Wayward.model_validate(found.to_json()) == found
    assert found.warning == WARNING


def test_a_search_is_pulled_by_its_first_recipe(ready: Ready, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    tasks = tiny_project(tmp_path, rows=120)
    task = find_task(tasks, "tiny-sentiment")
    searched = task.model_copy(update={"tune": Tune(search={"length": [3, 5]}, init=task.tune.init)})
    plain = build_plain_job(ready.base, searched, take_snapshot(task, store, tmp_path), store)
    assert (plain.tune.num_virtual_tokens, plain.tune.search) == (3, None)


def test_free_text_is_compared_by_the_metric_of_its_rows(ready: Ready) -> None:
    labels = {"negative": "it was bad", "positive": "it was good"}
    told = ready.job.task.model_copy(
        update={"labels": {}, "generate": Generation(max_new_tokens=6), "gate": Gate(metric="token_f1", minimum=0.5)}
    )
    free = FreeText(6, ready.base.tokenizer.eos_token_id)
    train, dev, test = (
        [
            row._replace(label=labels[row.label], target=free.target("", labels[row.label], "a row", ready.base.encode))
            for row in rows[:30]
        ]
        for rows in (ready.job.train, ready.job.dev, ready.test)
    )
    text = ready.job.text._replace(labels=LabelTokens((), ()), free=free)
    short = ready.job._replace(
        task=told, text=text, train=train, dev=dev, tune=ready.job.tune.model_copy(update={"steps": 2})
    )
    found = run_wayward(ready.base, short, test, Aim(TEXT, (1.0,)), lambda line: None)
    compared = found.pulled[0].compared
    assert compared is not None
    assert (found.metric, compared.metric) == ("token_f1", "token_f1")
    assert compared.difference == pytest.approx(found.pulled[0].test - found.plain.test)


def test_a_prefix_is_refused() -> None:
    base = family("llama", torch.float32)
    with pytest.raises(DataError, match="no embeddings to pull"):
        run_wayward(base, job(base, "prefix", method="prefix"), [], Aim(TEXT))


@pytest.mark.parametrize(
    ("aim", "named"),
    [
        (Aim(""), "has no tokens"),
        (Aim(TEXT, ()), "one or more"),
        (Aim(TEXT, (0.1, 0.1)), "different numbers"),
        (Aim(TEXT, (-1.0,)), "0 or above"),
        (Aim(TEXT, (float("inf"),)), "0 or above"),
    ],
)
def test_an_aim_that_is_none_is_refused(ready: Ready, aim: Aim, named: str) -> None:
    with pytest.raises(DataError, match=named):
        run_wayward(ready.base, ready.job, ready.test, aim)
