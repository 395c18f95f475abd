"""Gangs: many prompts in one pass train exactly as each would alone, and fail alone."""

import pytest
import torch

from ptpipeline.errors import TrainingError
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import list_tensors, rebuild
from ptpipeline.task.recipe import Tune
from ptpipeline.tuning.loop import Gang, run_gang
from ptpipeline.tuning.member import Job, Member, compute_learning_rate
from ptpipeline.tuning.passes import build_examples, concatenated_backward, shared_backward
from ptpipeline.tuning.sampler import sample_batches
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import job


@pytest.fixture
def base() -> CausalBase:
    return family("llama")


def run(base: CausalBase, *jobs: object) -> Gang:
    return run_gang(base, jobs, NoTracker(), lambda line: None)  # type: ignore[arg-type]


def prompt(member: Member) -> torch.Tensor:
    """All that the member's prompt holds now, flat."""
    with torch.no_grad():
        return torch.cat([tensor.flatten() for tensor in list_tensors(member.parameterisation.build_prompt())])


def jobs(base: CausalBase) -> list[Job]:
    """Every method, P mixed, batch sizes and rates mixed."""
    return [
        job(base, "a"),
        job(base, "b", seed=1, num_virtual_tokens=7, learning_rate=0.05, batch_size=5),
        job(base, "c", seed=2, num_virtual_tokens=1, steps=4, method="prefix", encoder_width=8),
        job(
            base,
            "d",
            seed=3,
            num_virtual_tokens=4,
            method="residual",
            encoder_width=8,
            optimizer="adafactor",
            schedule="constant",
            learning_rate=0.3,
        ),
        job(base, "e", seed=4, num_virtual_tokens=2, method="p_tuning", encoder_width=8),
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_member_trains_as_it_would_alone(base: CausalBase, count: int) -> None:
    wanted = jobs(base)[:count]
    for together, one in zip(run(base, *wanted).members, wanted, strict=True):
        alone = run(base, one).members[0]
        torch.testing.assert_close(prompt(together), prompt(alone), rtol=1e-5, atol=1e-6)
        assert [p.step for p in together.curve] == [p.step for p in alone.curve]
        assert (together.best_step, together.best_dev) == (alone.best_step, alone.best_dev)


def test_gradients_equal_concatenation(base: CausalBase) -> None:
    members = [Member.of(one) for one in jobs(base)]
    examples = build_examples([member.take_rows() for member in members])
    gradients, losses = [], []
    for backward in (shared_backward, concatenated_backward):
        prompts = [member.parameterisation.build_prompt() for member in members]
        leaves = [rebuild(p, [tensor.detach().clone().requires_grad_() for tensor in list_tensors(p)]) for p in prompts]
        losses.append(backward(base, leaves, examples))
        gradients.append([tensor.grad for leaf in leaves for tensor in list_tensors(leaf)])
    torch.testing.assert_close(*losses)
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_training_equals_a_plain_loop(base: CausalBase) -> None:
    """Ten lines of plain PyTorch over `[prompt][text][label]`, one row at a time, as the oracle."""
    one = jobs(base)[1]
    tune, expected = one.tune, one.initial.clone().requires_grad_()  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW([expected], lr=tune.learning_rate, weight_decay=tune.weight_decay)
    order = sample_batches([len(row.ids) for row in one.train], tune.batch_size, tune.seed)
    for step in range(1, tune.steps + 1):
        rows = [one.train[i] for i in next(order)]
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            label = torch.tensor(row.target)
            text = base.embed(torch.tensor(row.ids + label[:-1].tolist()))
            logits = base.model(inputs_embeds=torch.cat([expected, text])[None]).logits[0, -len(label) :].float()
            total = total + torch.nn.functional.cross_entropy(logits, label, reduction="sum")
        (total / sum(len(row.target) for row in rows)).backward()
        torch.nn.utils.clip_grad_norm_([expected], tune.max_grad_norm)
        optimizer.param_groups[0]["lr"] = compute_learning_rate(tune, step)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(prompt(run(base, one).members[0]), expected.detach().flatten(), rtol=1e-5, atol=1e-6)


def test_a_member_that_diverges_ends_alone(base: CausalBase) -> None:
    broken = job(base, "broken", learning_rate=1e300)
    healthy, failed = run(base, jobs(base)[0], broken).members
    assert isinstance(failed.error, TrainingError)
    assert "broken" in str(failed.error)
    torch.testing.assert_close(prompt(healthy), prompt(run(base, jobs(base)[0]).members[0]), rtol=1e-5, atol=1e-6)


def test_a_member_that_raises_ends_alone(base: CausalBase) -> None:
    """A token beyond the vocabulary in one member's rows fails the shared pass; the other's numbers are as
    without it.
    """
    broken = job(base, "broken", seed=5)
    broken = broken._replace(train=[row._replace(ids=[999999]) if i > 5 else row for i, row in enumerate(broken.train)])
    healthy, failed = run(base, jobs(base)[0], broken).members
    assert "broken: step" in str(failed.error)
    assert (healthy.error, healthy.step) == (None, 6)
    torch.testing.assert_close(prompt(healthy), prompt(run(base, jobs(base)[0]).members[0]), rtol=1e-5, atol=1e-6)


def test_a_member_stops_early_on_its_own(base: CausalBase) -> None:
    stopping = job(base, "stops", seed=3, learning_rate=1e-12, steps=40, patience=2)
    stopped, longer = run(base, stopping, job(base, "goes-on", steps=10)).members
    assert (stopped.stopped_early, stopped.step) == (True, 6)
    assert (longer.stopped_early, longer.step) == (False, 10)


def test_the_base_is_the_same_after_training(base: CausalBase) -> None:
    before = base.digest_weights()
    run(base, *jobs(base))
    assert base.digest_weights() == before


def test_a_second_run_is_bit_identical(base: CausalBase) -> None:
    first, second = run(base, *jobs(base)).members, run(base, *jobs(base)).members
    assert all(torch.equal(prompt(a), prompt(b)) for a, b in zip(first, second, strict=True))


def test_self_check_names_the_path(base: CausalBase) -> None:
    gang = run(base, jobs(base)[0])
    assert gang.check.figures["path"] == "shared"


def test_self_check_falls_back_where_paths_disagree(base: CausalBase, caplog: pytest.LogCaptureFixture) -> None:
    """A base whose cache forgets the prompt: the run takes the concatenated path and says so."""

    class Forgetful(CausalBase):
        def compute_prefix(self, prompts):  # type: ignore[no-untyped-def]
            return super().compute_prefix([prompt * 0.5 for prompt in prompts])

    forgetful = Forgetful(base.model, base.tokenizer, base.ref, torch.float32, 128)
    forgetful.model.float()
    gang = run(forgetful, job(forgetful, "a"))
    assert gang.check.figures["path"] == "concatenated"
    assert "disagrees" in caplog.text


@pytest.mark.parametrize(("step", "rate"), [(1, 0.05), (2, 0.1), (6, 0.055), (10, 0.01)])
def test_learning_rate_warms_up_then_decays(step: int, rate: float) -> None:
    tune = Tune(steps=10, warmup_steps=2, learning_rate=0.1)
    assert compute_learning_rate(tune, step) == pytest.approx(rate)


def test_the_kept_checkpoint_trains_no_further(base: CausalBase) -> None:
    """In float32 nothing has to be rounded, and a view of the parameter would go on moving."""
    member = Member.of(job(family("llama", torch.float32), "a", store_dtype="float32"))
    kept = member.round_to_stored()
    with torch.no_grad():
        next(member.parameterisation.parameters()).add_(1)
    assert not torch.equal(prompt(member), kept.flatten())  # type: ignore[union-attr]


def test_a_rate_beyond_the_type_ends_its_member_alone(base: CausalBase) -> None:
    healthy, failed = run(
        base, jobs(base)[0], job(base, "steep", learning_rate=1e308, method="p_tuning", encoder_width=4)
    ).members
    assert failed.error is not None
    torch.testing.assert_close(prompt(healthy), prompt(run(base, jobs(base)[0]).members[0]), rtol=1e-5, atol=1e-6)


def test_dev_rows_that_fail_end_their_member_alone(base: CausalBase) -> None:
    broken = job(base, "broken", seed=5)
    broken = broken._replace(dev=[row._replace(ids=[999999]) for row in broken.dev])
    healthy, failed = run(base, jobs(base)[0], broken).members
    assert "dev evaluation at step 2 failed" in str(failed.error)
    assert (healthy.error, healthy.step) == (None, 6)
