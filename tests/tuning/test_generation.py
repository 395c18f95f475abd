"""Generation tasks in a gang: loss on the target alone, dev by decoding, beside classification as alone."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from ptpipeline.evaluation.texts import measure_texts
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Job, Member, compute_learning_rate
from ptpipeline.tuning.sampler import sample_batches
from ptpipeline.tuning.tracker import NoTracker
from ptpipeline.tuning.tune import choose_end_token
from tests.models.families import family, seq2seq_family
from tests.tuning.jobs import END, job, text_job, words


@pytest.fixture
def base() -> FrozenBase:
    return words(family("llama"))


def run(base: FrozenBase, *jobs: Job) -> list[Member]:
    return run_gang(base, jobs, NoTracker(), lambda line: None).members


def prompt(member: Member) -> torch.Tensor:
    found = member.parameterisation.build_prompt()
    assert isinstance(found, torch.Tensor)
    return found.detach()


def test_training_equals_a_plain_loop_over_target_tokens(base: FrozenBase) -> None:
    """`[prompt][text][target]` row by row with every label but the target's set to -100, as the field does it."""
    one = text_job(base, "words", learning_rate=0.05)
    tune, expected = one.tune, torch.as_tensor(one.initial).clone().requires_grad_()
    optimizer = torch.optim.AdamW([expected], lr=tune.learning_rate, weight_decay=0)
    order = sample_batches([len(row.ids) for row in one.train], tune.batch_size, tune.seed)
    for step in range(1, tune.steps + 1):
        rows = [one.train[i] for i in next(order)]
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            ids = torch.tensor([*row.ids, *row.target])
            labels = torch.full((len(expected) + len(ids),), -100)
            labels[-len(row.target) :] = torch.tensor(row.target)
            logits = base.model(inputs_embeds=torch.cat([expected, base.embed(ids)])[None]).logits[0]
            total = total + torch.nn.functional.cross_entropy(
                logits[:-1].float(), labels[1:], ignore_index=-100, reduction="sum"
            )
        (total / sum(len(row.target) for row in rows)).backward()
        torch.nn.utils.clip_grad_norm_([expected], tune.max_grad_norm)
        optimizer.param_groups[0]["lr"] = compute_learning_rate(tune, step)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(prompt(run(base, one)[0]), expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "built", [lambda: family("llama"), lambda: seq2seq_family("t5 gated untied")], ids=["llama", "t5"]
)
def test_generation_beside_classification_trains_as_alone(built: Callable[[], FrozenBase]) -> None:
    base = words(built())
    wanted = [
        job(base, "labels", seed=1),
        text_job(base, "words"),
        text_job(base, "more", seed=2, num_virtual_tokens=7, learning_rate=0.05),
    ]
    for together, one in zip(run(base, *wanted), wanted, strict=True):
        alone = run(base, one)[0]
        torch.testing.assert_close(prompt(together), prompt(alone), rtol=1e-5, atol=1e-6)
        assert [point.dev for point in together.curve] == [point.dev for point in alone.curve]


def test_the_dev_metric_is_that_of_texts_decoded_behind_the_stored_prompt(base: FrozenBase) -> None:
    member = run(base, text_job(base, "words", steps=30, eval_every=30, learning_rate=0.2))[0]
    answers = [plainly_decoded(base, torch.as_tensor(member.best).double(), row.ids) for row in member.job.dev]
    expected = measure_texts("token_f1", [row.label for row in member.job.dev], answers)
    assert member.best_dev == pytest.approx(expected)
    assert member.best_dev > 0


def plainly_decoded(base: FrozenBase, prompt: torch.Tensor, text: list[int]) -> str:
    """The whole sequence is read anew for every token."""
    found: list[int] = []
    while len(found) < 4:
        embedded = base.embed(torch.tensor(text + found))
        token = int(base.model(inputs_embeds=torch.cat([prompt, embedded])[None]).logits[0, -1].argmax())
        if token == END:
            break
        found.append(token)
    return " ".join(map(str, found))


@pytest.mark.parametrize(("own", "chosen"), [(7, 7), (9, 3), (None, 3)])
def test_targets_end_with_the_tokenizers_end_if_decoding_stops_at_it(
    base: FrozenBase, own: int | None, chosen: int
) -> None:
    stated = SimpleNamespace(end_tokens=frozenset([3, 7]), tokenizer=SimpleNamespace(eos_token_id=own), ref=base.ref)
    assert choose_end_token(cast(FrozenBase, stated)) == chosen
