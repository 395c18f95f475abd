"""One frozen base, many prompts: each version's prefix cache is computed once, and a mixed batch gathers from them.

Caches are keyed by the prompt's digest, never by a name or an alias, so a moved alias can never answer with old keys.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.tokens import LabelTokens
from ptpipeline.errors import DataError
from ptpipeline.models.frozen import FrozenBase, PrefixCache, stack_caches
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import check_base, unpack
from ptpipeline.serving.answers import Opening
from ptpipeline.serving.answers import generate as generate_texts
from ptpipeline.serving.combine import combine
from ptpipeline.serving.ranking import Query, compute_prior, rank
from ptpipeline.serving.tokens import encode_fields, encode_labels
from ptpipeline.task.template import Fields


class LoadedPrompt(NamedTuple):
    """A verified prompt ready to answer: its artifact, its prefix cache, and its label tokens, if it has labels.

    An ensemble's cache holds all its prompts. `priors` calibrate the labels, one tensor [labels] per prompt; none if
    the labels are not calibrated.
    """

    artifact: Artifact
    cache: PrefixCache
    labels: LabelTokens
    priors: tuple[Tensor, ...] = ()


class Question(NamedTuple):
    """The fields of one text for the loaded prompt of that digest."""

    digest: str
    fields: Fields


class _Batch(NamedTuple):
    """The caches of several prompts as one, and by digest the index in it of each version's first prompt."""

    cache: PrefixCache
    first: dict[str, int]


class Engine:
    """Answers texts with the prompts that were loaded onto its base."""

    def __init__(self, base: FrozenBase) -> None:
        self.base = base
        self._loaded: dict[str, LoadedPrompt] = {}

    def load(self, artifact: Artifact, members: Sequence[Artifact] = ()) -> LoadedPrompt:
        """Verify a prompt, or an ensemble with its `members`, against this base and compute its prefix cache.

        A digest that is loaded already is not loaded again. Raises BaseModelError for a prompt of another base or
        tokenizer, ArtifactError for altered bytes.
        """
        digest = artifact.digest
        if digest not in self._loaded:
            check_base(artifact, *self.base.known)
            prompts = [
                place_prompt(self.base, unpack(single, *self.base.known), single.manifest.placement)
                for single in members or [artifact]
            ]
            with torch.inference_mode():
                cache = self.base.compute_prefix(prompts)
            labels = encode_labels(self.base, artifact.manifest)
            calibrated = range(len(prompts)) if labels.content_free else ()
            priors = tuple(compute_prior(self.base, cache, labels, prompt) for prompt in calibrated)
            self._loaded[digest] = LoadedPrompt(artifact, cache, labels, priors)
        return self._loaded[digest]

    def score_labels(self, questions: Sequence[Question]) -> list[Tensor]:
        """Return the score of every label [labels], one tensor per question; prompts may be mixed freely.

        Scores are log-likelihoods in nats up to a constant, as the question's prompt ranks. Each prompt of an ensemble
        is calibrated for itself, then all are combined. Raises ContextError if a text does not fit beside its prompt,
        DataError if a prompt has no labels.
        """
        if not questions:
            return []
        batch = self._build_batch(questions)
        queries = [self._build_queries(question, number, batch) for number, question in enumerate(questions, 1)]
        scores = iter(rank(self.base, batch.cache, [query for group in queries for query in group]))
        return [
            self._combine(question, [next(scores) for _ in group])
            for question, group in zip(questions, queries, strict=True)
        ]

    def generate(self, questions: Sequence[Question]) -> list[str]:
        """Return the text that follows each question behind its prompt; prompts may be mixed freely.

        Raises ContextError if a text does not fit beside its prompt, DataError if a prompt answers with labels.
        """
        if not questions:
            return []
        batch = self._build_batch(questions)
        openings = [self._build_opening(question, number, batch) for number, question in enumerate(questions, 1)]
        return generate_texts(self.base, batch.cache, openings)

    def _build_batch(self, questions: Sequence[Question]) -> _Batch:
        digests = sorted({question.digest for question in questions})
        caches = [self._loaded[digest].cache for digest in digests]
        starts = accumulate((len(cache.lengths) for cache in caches), initial=0)
        return _Batch(stack_caches(caches), dict(zip(digests, starts, strict=False)))  # the last start is the end

    def _build_queries(self, question: Question, number: int, batch: _Batch) -> list[Query]:
        """Return the question behind each prompt of its version."""
        loaded, first = self._loaded[question.digest], batch.first[question.digest]
        manifest = loaded.artifact.manifest
        if not loaded.labels.names:
            raise DataError(f"{manifest.task} answers {manifest.answers}: it has no labels to rank; ask for a text")
        ids = self._encode_text(question, number)
        priors: Sequence[Tensor | None] = loaded.priors or [None] * len(loaded.cache.lengths)
        return [Query(ids, loaded.labels, first + index, own) for index, own in enumerate(priors)]

    def _build_opening(self, question: Question, number: int, batch: _Batch) -> Opening:
        manifest = self._loaded[question.digest].artifact.manifest
        if manifest.generate is None:
            raise DataError(f"{manifest.task} answers {manifest.answers}: it generates no text; ask for a label")
        ids = self._encode_text(question, number)
        return Opening(ids, manifest.generate.max_new_tokens, batch.first[question.digest])

    def _encode_text(self, question: Question, number: int) -> list[int]:
        manifest = self._loaded[question.digest].artifact.manifest
        return encode_fields(self.base, manifest, question.fields, f"text {number} for {manifest.task}")

    def _combine(self, question: Question, scores: list[Tensor]) -> Tensor:
        members = self._loaded[question.digest].artifact.manifest.members
        return combine(torch.stack(scores), members.combine) if members else scores[0]
