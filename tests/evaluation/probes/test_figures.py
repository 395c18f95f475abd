"""Norms and latency, each against figures by hand."""

import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ptpipeline.evaluation.probes import latency, norms
from ptpipeline.evaluation.probes.latency import _compared_requests, measure_latency
from ptpipeline.evaluation.probes.norms import measure_norms
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import Input, KeyValues, PrefixCache
from ptpipeline.prompts.initialise import compute_activations, sample_vocabulary
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.records.prompts import Scoring
from ptpipeline.serving.engine import Engine, Question
from tests.evaluation.probed import artifact, copied, embeddings, fields, opinions, rows, tiny, writing


def test_embeddings_are_held_against_the_vocabulary() -> None:
    base = tiny()
    sizes = base.model.get_input_embeddings().weight.norm(dim=1)
    ordinary, largest = embeddings(base, " film"), base.embed(sizes.argmax()[None])
    found = measure_norms(Engine(base), artifact(base, torch.cat([ordinary, largest, 1.01 * largest, 3 * ordinary])))
    ratios = sorted(
        float(size / sizes.median()) for size in (ordinary.norm(), sizes.max(), 1.01 * sizes.max(), 3 * ordinary.norm())
    )
    assert found["norms.median_ratio"] == pytest.approx(ratios[1], rel=1e-5)
    assert found["norms.max_ratio"] == pytest.approx(ratios[3], rel=1e-5)
    assert found["norms.beyond"] == 0.5


@pytest.mark.parametrize(("scale", "beyond"), [(1.0, 0.0), (10.0, 1.0)])
def test_keys_and_values_are_held_against_those_of_words(scale: float, beyond: float) -> None:
    base = tiny()
    words = compute_activations(base, base.embed(sample_vocabulary(base, 256, seed=0)).detach())
    prompt = KeyValues(words.key[:, :, 100:108] * scale, words.value[:, :, 100:108] * scale)
    found = measure_norms(Engine(base), artifact(base, prompt, method="prefix"))
    assert found["norms.median_ratio"] == pytest.approx(scale, rel=0.25)
    assert found["norms.beyond"] == beyond


def test_a_prefix_is_held_against_no_more_words_than_the_base_reads() -> None:
    words = compute_activations(tiny(), tiny().embed(sample_vocabulary(tiny(), 8, seed=1)).detach())
    made = artifact(tiny(), KeyValues(words.key, words.value), method="prefix")
    whole, short = (measure_norms(Engine(base), made) for base in (tiny(), replace(tiny(), context=16)))
    assert whole["norms.median_ratio"] != short["norms.median_ratio"]


def test_rows_of_zeros_are_no_tokens_of_the_vocabulary() -> None:
    base = copied(tiny())
    weight = base.model.get_input_embeddings().weight
    sizes = weight.norm(dim=1).sort()
    weight[sizes.indices[: int(0.8 * len(sizes.indices))]] = 0
    kept = sizes.values[int(0.8 * len(sizes.values)) :]
    found = measure_norms(Engine(base), artifact(base, kept.max() * torch.eye(weight.shape[1])[:1]))
    assert found["norms.median_ratio"] == pytest.approx(float(kept.max() / kept.median()), rel=1e-5)


def test_a_vocabulary_is_measured_whole_whatever_is_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact(tiny(), embeddings(tiny(), " film"))
    whole = measure_norms(Engine(tiny()), made)
    monkeypatch.setattr(norms, "BLOCK", 100)
    assert measure_norms(Engine(tiny()), made) == pytest.approx(whole)


def test_the_members_of_an_ensemble_count_together() -> None:
    base = tiny()
    members = [artifact(base, embeddings(base, " film")), artifact(base, embeddings(base, " film") * 50)]
    made = pack_ensemble(members, "average", fields(base) | {"method": "ensemble"})
    assert measure_norms(Engine(base), made, members)["norms.beyond"] == 0.5


class Slow(Engine):
    """Takes a prompt's request for nine, and five milliseconds more."""

    def score_labels(self, questions: Sequence[Question]) -> list[Tensor]:
        time.sleep(0.005)
        for _ in range(8):
            super().score_labels(questions)
        return super().score_labels(questions)


def test_latency_is_the_time_of_one_request_and_its_ratio_the_prompts_part() -> None:
    _, made = opinions(tiny())
    engine = Slow(tiny())
    engine.load(made)
    started = time.perf_counter()
    found = measure_latency(engine, made, rows(10))
    elapsed = time.perf_counter() - started
    assert 5 < found["latency.p50_ms"] <= found["latency.p95_ms"]
    assert 20 * found["latency.p50_ms"] / 1000 < elapsed  # half of forty requests took as long
    assert found["latency.ratio"] > 2


class Counting(Engine):
    """Counts its requests."""

    requests = 0

    def score_labels(self, questions: Sequence[Question]) -> list[Tensor]:
        self.requests += 1
        return super().score_labels(questions)


def test_forty_requests_are_timed_after_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that tells 1 to 40 milliseconds of those behind the prompt, and 10 of each without it."""
    _, made = opinions(tiny())
    engine = Counting(tiny())
    engine.load(made)
    before = engine.requests
    times = iter([at for number in range(1, 41) for at in (0, number / 1000, 0, 0.01)])
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    found = measure_latency(engine, made, rows(10))
    assert found == pytest.approx({"latency.p50_ms": 20.5, "latency.p95_ms": 38.05, "latency.ratio": 2.05})
    assert engine.requests - before == 45


def test_the_prompts_part_of_a_generated_text_is_in_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that tells 100 milliseconds of a text, and of its first token 20 behind the prompt and 10 without."""
    engine, made = writing(tiny())
    times = iter([at for _ in range(40) for at in (0, 0.1, 0, 0.02, 0, 0.01)])
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    found = measure_latency(engine, made, rows(10))
    assert found == pytest.approx({"latency.p50_ms": 100, "latency.p95_ms": 100, "latency.ratio": 2})


class Noting(CausalBase):
    """Notes how many rows it computes at once."""

    def compute_states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Tensor:
        NOTED.append(len(inputs))
        return super().compute_states(cache, inputs)


NOTED: list[int] = []


def test_a_request_without_the_prompt_is_calibrated_no_more_often_than_one_behind_it() -> None:
    """That is done once, when a prompt is loaded."""
    computed = []
    for scoring in (Scoring(), Scoring(calibrated=True)):
        base = replace(tiny())
        object.__setattr__(base, "__class__", Noting)
        engine, made = Engine(base), artifact(base, embeddings(tiny()), scoring=scoring)
        *_, alone = _compared_requests(engine, made)
        NOTED.clear()
        alone({"text": "the good film"})
        computed.append(list(NOTED))
    assert computed[0] == computed[1] != []


class Writing(Engine):
    """Takes twenty milliseconds to write, by a clock on which everything else takes one."""

    now = 0.0

    def tell(self) -> float:
        self.now += 0.001
        return self.now

    def generate(self, questions: Sequence[Question]) -> list[str]:
        self.now += 0.02
        return super().generate(questions)


def test_the_ratio_of_generated_texts_is_that_of_their_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = writing(tiny())
    engine = Writing(tiny())
    engine.load(made)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=engine.tell))
    found = measure_latency(engine, made, rows(10))
    assert found == pytest.approx({"latency.p50_ms": 21, "latency.p95_ms": 21, "latency.ratio": 1})


def test_latency_of_generated_texts_is_measured_too_and_of_no_rows_not() -> None:
    engine, made = writing(tiny())
    assert set(measure_latency(engine, made, rows(10))) == {"latency.p50_ms", "latency.p95_ms", "latency.ratio"}
    assert measure_latency(engine, made, []) == {}
