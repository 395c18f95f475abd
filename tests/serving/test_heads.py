"""Heads that texts share: read once, and every state is that of the text read whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.causal import CausalBase, Extended
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, KeyValues, PrefixCache, SoftPrompt
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.serving.answers import Opening, generate
from ptpipeline.serving.heads import WORTH, share_heads
from ptpipeline.serving.ranking import Query, rank
from tests.models.families import FAMILIES, family, seq2seq_family
from tests.tuning.jobs import words

HEAD = [7, 11, 7, 19, 23, 31, 8, 3, 5, 13, 11, 17]  # longer than the windows of the sliding families
SINGLE = LabelTokens(("a", "b"), ((41,), (42,)))
BRANCHES = LabelTokens(("a", "b", "c", "d"), ((41,), (42, 43), (42, 44, 45), (46, 47)))


@dataclass(frozen=True)
class Counting(CausalBase):
    """A base that notes how many tokens of text each pass reads."""

    read: list[int] = field(default_factory=list, kw_only=True)

    def compute_states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> torch.Tensor:
        self.read.append(sum(row.length for row in inputs))
        return super().compute_states(cache, inputs)

    def extend(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Extended:
        self.read.append(sum(len(row.text) for row in inputs))
        return super().extend(cache, inputs)


def counting(name: str = "llama") -> Counting:
    base = family(name)
    return Counting(base.model, base.tokenizer, base.ref, base.dtype, base.context)


def prompts(base: CausalBase) -> list[SoftPrompt]:
    """Two of embeddings, and one of keys and values."""
    torch.manual_seed(3)
    embedded = [torch.randn(count, 32, dtype=torch.float64) * 0.2 for count in (2, 5)]
    return [*embedded, compute_activations(base, torch.randn(4, 32, dtype=torch.float64))]


def texts(prompt: int, head: list[int], count: int = 8) -> list[Input]:
    """Rows of several lengths and continuations behind one head."""
    torch.manual_seed(prompt)
    ends = [torch.randint(0, 97, (1 + index % 4,)).tolist() for index in range(count)]
    return [Input([*head, *end], (9,) * (index % 3), prompt) for index, end in enumerate(ends)]


@pytest.mark.parametrize("name", FAMILIES)
def test_states_behind_a_shared_head_are_those_of_whole_texts(name: str) -> None:
    base = family(name)
    inputs = [*texts(0, HEAD), *texts(1, []), *texts(2, HEAD[:9])]  # the rows of one prompt share nothing
    for cache, rows in ((base.compute_prefix(prompts(base)), inputs), (None, texts(0, HEAD))):
        shared, left = share_heads(base, cache, rows)
        assert sum(row.length for row in left) < sum(row.length for row in rows)
        torch.testing.assert_close(
            base.compute_states(shared, left), base.compute_states(cache, rows), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_behind_a_shared_head_are_continued_as_each_alone(name: str) -> None:
    base = words(family(name))
    cache = base.compute_prefix(prompts(base))
    openings = [Opening(list(row.text), 5, row.prompt) for row in (*texts(0, HEAD), *texts(1, HEAD))]
    assert generate(base, cache, openings) == [generate(base, cache, [one])[0] for one in openings]


def test_a_head_is_read_once() -> None:
    base, rows = counting(), texts(0, HEAD)
    rank(base, base.compute_prefix(prompts(base)), [Query(list(row.text), SINGLE, 0) for row in rows])
    assert sum(base.read) == len(HEAD) + sum(len(row.text) - len(HEAD) for row in rows)


def test_each_text_keeps_a_token_of_its_own() -> None:
    base = family("llama")
    _, left = share_heads(base, None, [Input(HEAD, (), 0)] * 9)
    assert [row.text for row in left] == [HEAD[-1:]] * 9


def test_a_head_that_saves_less_than_a_pass_costs_is_not_shared() -> None:
    base = family("llama")
    enough = [Input([*HEAD[:8], index], (), 0) for index in range(WORTH // 8 + 1)]
    assert share_heads(base, None, enough)[1] != enough
    assert share_heads(base, None, enough[1:]) == (None, enough[1:])


def test_rows_whose_length_changes_the_rotations_are_read_whole() -> None:
    base = family("llama")
    rows = [Input([*HEAD, index], (), 0) for index in range(20)]
    rope = {"rope_type": "longrope", "original_max_position_embeddings": len(rows[0].text) - 1}
    base.model.config.rope_parameters = base.model.config.rope_parameters | rope
    assert share_heads(base, None, rows) == (None, rows)
    assert share_heads(base, None, [row._replace(text=row.text[1:]) for row in rows])[0] is not None


def test_an_encoder_reads_every_text_whole() -> None:
    base = seq2seq_family("t5 relu tied")
    rows = [Input([*HEAD, index], (), 0) for index in range(20)]
    assert share_heads(base, None, rows) == (None, rows)


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_behind_the_cache_of_their_text_score_as_in_rows_of_their_own(name: str) -> None:
    base = family(name)
    cache = base.compute_prefix(prompts(base))
    queries = [
        Query(list(row.text), BRANCHES if index % 3 else SINGLE, row.prompt)
        for index, row in enumerate([*texts(0, HEAD), *texts(1, []), *texts(2, [4])])
    ]
    for query, scores in zip(queries, rank(base, cache, queries), strict=True):
        torch.testing.assert_close(scores, torch.stack(alone(base, cache, query)), rtol=1e-5, atol=1e-5)


def alone(base: FrozenBase, cache: PrefixCache, query: Query) -> list[torch.Tensor]:
    """The log-likelihood of each label, in a row of its own."""
    scores = []
    for label in query.labels.ids:
        states = base.compute_states(cache, [Input(query.ids, label[:-1], query.prompt)])
        log_probs = base.compute_logits(states).log_softmax(-1)
        scores.append(log_probs[range(len(label)), list(label)].sum())
    return scores


def test_a_text_is_read_once_for_all_its_labels() -> None:
    base, rows = counting(), texts(1, [])
    rows = [row._replace(text=[*row.text, *HEAD, *HEAD]) for row in rows]
    rank(base, base.compute_prefix(prompts(base)), [Query(list(row.text), BRANCHES, 1) for row in rows])
    beginnings = len((42,)) + len((42, 44)) + len((46,))
    assert sum(base.read) == sum(len(row.text) + beginnings for row in rows)


def test_an_encoder_reads_a_text_once_for_all_its_labels() -> None:
    base, encoded = seq2seq_family("t5 relu tied"), list[int]()
    base.model.encoder.register_forward_hook(lambda module, given, states: encoded.append(len(states[0])))
    cache = base.compute_prefix([torch.randn(2, 32, dtype=torch.float64)])
    rank(base, cache, [Query(HEAD, BRANCHES, 0), Query(HEAD[1:], SINGLE, 0)])
    assert encoded == [2]


def test_labels_of_one_token_need_no_second_pass() -> None:
    base, rows = counting(), texts(1, [])
    rank(base, base.compute_prefix(prompts(base)), [Query(list(row.text), SINGLE, 1) for row in rows])
    assert base.read == [sum(len(row.text) for row in rows)]


def test_key_values_are_extended_as_embeddings_are() -> None:
    base = family("llama")
    embedded = torch.randn(3, 32, dtype=torch.float64)
    values = compute_activations(base, embedded)
    assert isinstance(values, KeyValues)
    (one, other) = (base.extend(base.compute_prefix([prompt]), texts(0, HEAD)).cache for prompt in (embedded, values))
    for ours, theirs in zip(one.tensors, other.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
