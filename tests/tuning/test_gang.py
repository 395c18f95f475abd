"""Gangs: many prompts in one pass train exactly as each would alone, and fail alone."""

from collections.abc import Iterator

import pytest
import torch

import ptpipeline.tuning.member as member_module
from ptpipeline.errors import TrainingError
from ptpipeline.models.causal import CausalBase
from ptpipeline.tuning.loop import Gang, run_gang
from ptpipeline.tuning.member import Member, learning_rate
from ptpipeline.tuning.passes import concatenated_backward, examples_of, shared_backward
from ptpipeline.tuning.sampler import batches
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import LABELS, job


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[CausalBase]:
    """A float64 Llama; prompts start from its embeddings by a seeded draw, as it has no tokenizer."""

    def drawn(base: CausalBase, tune: object) -> torch.Tensor:
        ids = torch.randint(0, 97, (tune.num_virtual_tokens,), generator=torch.Generator().manual_seed(tune.seed))  # type: ignore[attr-defined]
        return base.embed(ids).detach()

    monkeypatch.setattr(member_module, "initial_prompt", drawn)
    return (yield family("llama"))


def run(base: CausalBase, *jobs: object) -> Gang:
    return run_gang(base, jobs, NoTracker(), lambda line: None)  # type: ignore[arg-type]


JOBS = (job("a"), job("b", seed=1, num_virtual_tokens=7, learning_rate=0.05, batch_size=5), job("c", seed=2, num_virtual_tokens=1, steps=4))


def test_each_member_trains_as_it_would_alone(base: CausalBase) -> None:
    for together, one in zip(run(base, *JOBS).members, JOBS, strict=True):
        alone = run(base, one).members[0]
        torch.testing.assert_close(together.prompt, alone.prompt, rtol=1e-5, atol=1e-6)
        assert [p.step for p in together.curve] == [p.step for p in alone.curve]
        assert (together.best_step, together.best_dev) == (alone.best_step, alone.best_dev)


def test_gradients_equal_concatenation(base: CausalBase) -> None:
    members = [Member.of(base, one) for one in JOBS]
    examples = examples_of([member.next_rows() for member in members])
    gradients, losses = [], []
    for backward in (shared_backward, concatenated_backward):
        leaves = [member.prompt.detach().clone().requires_grad_() for member in members]
        losses.append(backward(base, leaves, examples))
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*losses)
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)


def test_training_equals_a_plain_loop(base: CausalBase) -> None:
    """Ten lines of plain PyTorch over `[prompt][text][label]`, one row at a time, as the oracle."""
    tune = JOBS[1].task.tune
    prompt = Member.of(base, JOBS[1]).prompt
    optimizer = torch.optim.AdamW([prompt], lr=tune.learning_rate, weight_decay=tune.weight_decay)
    order = batches([len(row.ids) for row in JOBS[1].train], tune.batch_size, tune.seed)
    for step in range(1, tune.steps + 1):
        rows = [JOBS[1].train[i] for i in next(order)]
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            label = torch.tensor(LABELS.ids[row.label])
            text = base.embed(torch.tensor(row.ids + label[:-1].tolist()))
            logits = base.model(inputs_embeds=torch.cat([prompt, text])[None]).logits[0, -len(label) :].float()
            total = total + torch.nn.functional.cross_entropy(logits, label, reduction="sum")
        (total / sum(len(LABELS.ids[row.label]) for row in rows)).backward()
        torch.nn.utils.clip_grad_norm_([prompt], tune.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(tune, step)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(run(base, JOBS[1]).members[0].prompt, prompt, rtol=1e-5, atol=1e-6)


def test_a_member_that_diverges_ends_alone(base: CausalBase) -> None:
    broken = job("broken", learning_rate=1e300)
    healthy, failed = run(base, JOBS[0], broken).members
    assert isinstance(failed.error, TrainingError)
    assert "broken" in str(failed.error)
    torch.testing.assert_close(healthy.prompt, run(base, JOBS[0]).members[0].prompt, rtol=1e-5, atol=1e-6)


def test_a_member_stops_early_on_its_own(base: CausalBase) -> None:
    stopping = job("stops", seed=3, learning_rate=1e-12, steps=40, patience=2)
    stopped, longer = run(base, stopping, job("goes-on", steps=10)).members
    assert (stopped.stopped_early, stopped.step) == (True, 6)
    assert (longer.stopped_early, longer.step) == (False, 10)


def test_the_base_is_the_same_after_training(base: CausalBase) -> None:
    before = base.weights_digest()
    run(base, *JOBS)
    assert base.weights_digest() == before


def test_a_second_run_is_bit_identical(base: CausalBase) -> None:
    first, second = run(base, *JOBS).members, run(base, *JOBS).members
    assert all(torch.equal(a.prompt, b.prompt) for a, b in zip(first, second, strict=True))


def test_self_check_names_the_path(base: CausalBase) -> None:
    gang = run(base, JOBS[0])
    assert gang.check.figures["path"] == "shared"


def test_self_check_falls_back_where_paths_disagree(base: CausalBase, caplog: pytest.LogCaptureFixture) -> None:
    """A base whose cache forgets the prompt: the run takes the concatenated path and says so."""

    class Forgetful(CausalBase):
        def prefix(self, prompts):  # type: ignore[no-untyped-def]
            return super().prefix([prompt * 0.5 for prompt in prompts])

    forgetful = Forgetful(base.model, None, base.ref, torch.float32, 128)
    forgetful.model.float()
    gang = run(forgetful, JOBS[0])
    assert gang.check.figures["path"] == "concatenated"
    assert "disagrees" in caplog.text


@pytest.mark.parametrize(("step", "rate"), [(1, 0.05), (2, 0.1), (6, 0.055), (10, 0.01)])
def test_learning_rate_warms_up_then_decays(step: int, rate: float) -> None:
    tune = job("x", steps=10, warmup_steps=2, learning_rate=0.1).task.tune
    assert learning_rate(tune, step) == pytest.approx(rate)
