"""One frozen base, many prompts: each version's prefix cache is computed once, a mixed batch gathers them.

Caches are keyed by the prompt's digest, never by a name or an alias, so a moved alias can never answer with old keys.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.tokens import LabelTokens, encode_text, label_tokens
from ptpipeline.models.causal import CausalBase, PrefixCache, stack_caches
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.tensors import unpack
from ptpipeline.serving.ranking import Query, rank


class Loaded(NamedTuple):
    """A verified prompt ready to answer: its artifact, prefix cache and label tokens."""

    artifact: Artifact
    prefix: PrefixCache
    labels: LabelTokens


class Question(NamedTuple):
    """One text for one loaded prompt."""

    digest: str
    text: str


class Engine:
    """Answers texts with the prompts that were loaded onto its base."""

    def __init__(self, base: CausalBase) -> None:
        self.base = base
        self._loaded: dict[str, Loaded] = {}

    def load(self, artifact: Artifact) -> Loaded:
        """Verify a prompt against this base and compute its prefix cache; once per digest.

        Raises BaseModelError for a prompt of another base or tokenizer, ArtifactError for altered bytes.
        """
        digest = artifact.digest
        if digest not in self._loaded:
            prompt = unpack(artifact, self.base.ref)
            with torch.inference_mode():
                prefix = self.base.prefix([prompt])
            labels = label_tokens(artifact.manifest.task, artifact.manifest.labels, self.base.encode)
            self._loaded[digest] = Loaded(artifact, prefix, labels)
        return self._loaded[digest]

    def log_likelihoods(self, questions: Sequence[Question]) -> list[Tensor]:
        """Log-likelihood of every label [labels], one tensor per question; prompts may be mixed freely.

        Raises ContextError where a text does not fit beside its prompt.
        """
        digests = sorted({question.digest for question in questions})
        if not digests:
            return []
        member = {digest: index for index, digest in enumerate(digests)}
        prefix = stack_caches([self._loaded[digest].prefix for digest in digests])
        return rank(self.base, prefix, [self._query(question, number, member) for number, question in enumerate(questions, 1)])

    def _query(self, question: Question, number: int, member: dict[str, int]) -> Query:
        loaded = self._loaded[question.digest]
        manifest = loaded.artifact.manifest
        what = f"text {number} for {manifest.task}"
        ids = encode_text(manifest.template, question.text, manifest.max_input_tokens, what, self.base.encode)
        return Query(ids, loaded.labels, member[question.digest])
