"""One frozen base, many prompts: each version's prefix cache is computed once, a mixed batch gathers them.

Caches are keyed by the prompt's digest, never by a name or an alias, so a moved alias can never answer with old keys.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.tokens import LabelTokens, encode_text, label_tokens, scored
from ptpipeline.errors import DataError
from ptpipeline.models.frozen import FrozenBase, PrefixCache, stack_caches
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.placement import placed, text_encoder
from ptpipeline.prompts.tensors import check_base, unpack
from ptpipeline.serving.answers import Opening
from ptpipeline.serving.answers import generate as generated
from ptpipeline.serving.combine import combined
from ptpipeline.serving.ranking import Query, prior, rank


class Loaded(NamedTuple):
    """A verified prompt ready to answer: its artifact, the prefix cache of it or of its members, and its label tokens,
    if it has labels.

    `priors` are what its labels are calibrated by, one tensor [labels] per member; none where they are not.
    """

    artifact: Artifact
    cache: PrefixCache
    labels: LabelTokens
    priors: tuple[Tensor, ...] = ()


class Question(NamedTuple):
    """One text for one loaded prompt."""

    digest: str
    text: str


class Engine:
    """Answers texts with the prompts that were loaded onto its base."""

    def __init__(self, base: FrozenBase) -> None:
        self.base = base
        self._loaded: dict[str, Loaded] = {}

    def load(self, artifact: Artifact, members: Sequence[Artifact] = ()) -> Loaded:
        """Verify a prompt, or an ensemble with its members, against this base and compute its prefix cache; once per
        digest.

        Raises BaseModelError for a prompt of another base or tokenizer, ArtifactError for altered bytes.
        """
        digest = artifact.digest
        if digest not in self._loaded:
            check_base(artifact, self.base.ref)
            prompts = [
                placed(self.base, unpack(one, self.base.ref), one.manifest.placement) for one in members or [artifact]
            ]
            with torch.inference_mode():
                cache = self.base.prefix(prompts)
            labels = self._labels(artifact)
            members_of = range(len(prompts)) if labels.content_free else ()
            self._loaded[digest] = Loaded(
                artifact, cache, labels, tuple(prior(self.base, cache, labels, member) for member in members_of)
            )
        return self._loaded[digest]

    def log_likelihoods(self, questions: Sequence[Question]) -> list[Tensor]:
        """Score of every label [labels], one tensor per question: log-likelihoods up to a constant, as its prompt
        ranks; prompts may be mixed freely.

        The members of an ensemble are calibrated each for itself, then combined.
        Raises ContextError where a text does not fit beside its prompt, DataError where a prompt has no labels.
        """
        if not questions:
            return []
        cache, first = self._caches(questions)
        queries = [
            self._queries(question, number, first[question.digest]) for number, question in enumerate(questions, 1)
        ]
        scores = iter(rank(self.base, cache, [query for group in queries for query in group]))
        return [
            self._answer(question, [next(scores) for _ in group])
            for question, group in zip(questions, queries, strict=True)
        ]

    def generate(self, questions: Sequence[Question]) -> list[str]:
        """The text that follows each question behind its prompt; prompts may be mixed freely.

        Raises ContextError where a text does not fit beside its prompt, DataError where a prompt answers with labels.
        """
        if not questions:
            return []
        cache, first = self._caches(questions)
        return generated(
            self.base,
            cache,
            [self._opening(question, number, first[question.digest]) for number, question in enumerate(questions, 1)],
        )

    def _labels(self, artifact: Artifact) -> LabelTokens:
        manifest = artifact.manifest
        encode = text_encoder(self.base, manifest.placement) if manifest.scoring.calibrated else self.base.encode
        return scored(
            label_tokens(manifest.task, manifest.labels, self.base.encode),
            manifest.scoring,
            manifest.template,
            manifest.max_input_tokens,
            encode,
        )

    def _caches(self, questions: Sequence[Question]) -> tuple[PrefixCache, dict[str, int]]:
        """The caches of all prompts asked as one, and where each prompt's begin in it."""
        digests = sorted({question.digest for question in questions})
        caches = [self._loaded[digest].cache for digest in digests]
        return stack_caches(caches), dict(zip(digests, _starts(caches), strict=True))

    def _queries(self, question: Question, number: int, first: int) -> list[Query]:
        """The question behind each prompt of its version, whose caches start at `first`."""
        loaded = self._loaded[question.digest]
        if not loaded.labels.names:
            raise DataError(
                f"{loaded.artifact.manifest.task} answers {loaded.artifact.manifest.answers}: it has no labels to rank"
            )
        ids = self._encoded(question, number)
        priors: Sequence[Tensor | None] = loaded.priors or [None] * len(loaded.cache.lengths)
        return [Query(ids, loaded.labels, first + member, own) for member, own in enumerate(priors)]

    def _opening(self, question: Question, number: int, first: int) -> Opening:
        manifest = self._loaded[question.digest].artifact.manifest
        if manifest.generate is None:
            raise DataError(f"{manifest.task} answers {manifest.answers}: it generates no text")
        return Opening(self._encoded(question, number), manifest.generate.max_new_tokens, first)

    def _encoded(self, question: Question, number: int) -> list[int]:
        manifest = self._loaded[question.digest].artifact.manifest
        encode = text_encoder(self.base, manifest.placement)
        return encode_text(
            manifest.template, question.text, manifest.max_input_tokens, f"text {number} for {manifest.task}", encode
        )

    def _answer(self, question: Question, scores: list[Tensor]) -> Tensor:
        members = self._loaded[question.digest].artifact.manifest.members
        return combined(torch.stack(scores), members.combine) if members else scores[0]


def _starts(caches: Sequence[PrefixCache]) -> list[int]:
    """Where each cache's prompts begin in the stack of all."""
    starts, total = [], 0
    for cache in caches:
        starts.append(total)
        total += len(cache.lengths)
    return starts
