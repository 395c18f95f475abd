"""One frozen base, many prompts: each version's prefix cache is computed once, and a mixed batch gathers from them.

Caches are keyed by the prompt's digest, never by a name or an alias, so a moved alias can never answer with old keys.
All prompts stay in memory. Their caches, which are forty times as large, do up to a bound; then those that were used
last stay, and others are computed again when they are needed.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.batches import group_by_length
from ptpipeline.data.tokens import LabelTokens
from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.models.base import PreparedBase
from ptpipeline.models.compute_type import choose_dtype
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues, PrefixCache, SoftPrompt, count_virtual_tokens, stack_caches
from ptpipeline.models.load import load_base
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import check_base, unpack
from ptpipeline.serving.answers import Opening
from ptpipeline.serving.answers import generate as generate_texts
from ptpipeline.serving.caches import CACHE_BYTES, PrefixCaches, copy_entries
from ptpipeline.serving.combine import combine
from ptpipeline.serving.ranking import Query, choose_pass_tokens, compute_prior, rank
from ptpipeline.serving.tokens import check_labels, encode_fields, encode_labels, find_limit
from ptpipeline.settings import Settings
from ptpipeline.task.template import Fields, read_template

log = logging.getLogger(__name__)

STACKED_SLOTS = 4096  # virtual tokens whose keys and values are copied together for the rows of one call


class LoadedPrompt(NamedTuple):
    """A verified prompt: its artifact, those of an ensemble's members, and its label tokens, if it has labels. lengths:
    how many tokens the model reads before the text, for each of its prompts.
    """

    artifact: Artifact
    members: tuple[Artifact, ...]
    labels: LabelTokens
    lengths: tuple[int, ...] = ()

    @property
    def prompts(self) -> tuple[Artifact, ...]:
        """The artifacts that hold the tensors: the members, or the prompt itself."""
        return self.members or (self.artifact,)

    @property
    def slots(self) -> int:
        """Number of virtual tokens, of all members together."""
        return sum(single.manifest.num_virtual_tokens for single in self.prompts)


class Question(NamedTuple):
    """The fields of one text for the loaded prompt of that digest.

    what: names the text in messages; by default, its number among those that are asked with it does.
    """

    digest: str
    fields: Fields
    what: str = ""


class Rendered(NamedTuple):
    """One text as token ids, for the loaded prompt of that digest."""

    digest: str
    ids: list[int]


class _Batch(NamedTuple):
    """The caches of several prompts as one, and by digest the index in it of each version's first prompt."""

    cache: PrefixCache
    first: dict[str, int]


class Engine:
    """Answers texts with the prompts that were loaded onto its base.

    One thread at a time may ask it; `add`, `find` and `render` may run beside that.
    """

    def __init__(self, base: FrozenBase, cache_bytes: int = CACHE_BYTES) -> None:
        self.base = base
        self.caches = PrefixCaches(cache_bytes)
        self._loaded: dict[str, LoadedPrompt] = {}
        self._priors: dict[str, tuple[Tensor, ...]] = {}  # [labels] per prompt of a version with calibrated labels

    def add(self, artifact: Artifact, members: Sequence[Artifact] = ()) -> LoadedPrompt:
        """Verify a prompt, or an ensemble with its `members`, against this base, and keep it; nothing is computed.

        A digest that is loaded already is not loaded again. Raises BaseModelError for a prompt of another base or
        tokenizer, ArtifactError for altered bytes.
        """
        digest = artifact.digest
        if digest not in self._loaded:
            check_base(artifact, *self.base.known)
            loaded = LoadedPrompt(artifact, tuple(members), encode_labels(self.base, artifact.manifest))
            placed = self._place_prompts(loaded)
            self._loaded[digest] = loaded._replace(lengths=tuple(map(count_virtual_tokens, placed)))
        return self._loaded[digest]

    def load(self, artifact: Artifact, members: Sequence[Artifact] = ()) -> LoadedPrompt:
        """Add a prompt, and compute its prefix cache and what calibrates its labels. Raises what `add` raises."""
        loaded, digest = self.add(artifact, members), artifact.digest
        if digest not in self.caches:
            self.find_cache(digest)
        if loaded.labels.content_free:
            self._find_priors(digest)
        return loaded

    def unload(self, digest: str) -> None:
        """Forget a prompt; one that is not loaded is none."""
        self._loaded.pop(digest, None)
        self._priors.pop(digest, None)
        self.caches.drop(digest)

    def find(self, digest: str) -> LoadedPrompt:
        """Return the loaded prompt of that digest; raises NotFound if there is none."""
        try:
            return self._loaded[digest]
        except KeyError:
            raise NotFound(f"no prompt {digest[:12]} is loaded here; load it before you ask it") from None

    def find_cache(self, digest: str) -> PrefixCache:
        """Return the prefix cache of a loaded prompt, all prompts of an ensemble in order."""
        return self.find_caches([digest])[0]

    def find_caches(self, digests: Sequence[str]) -> list[PrefixCache]:
        """Return the versions' caches in order; those that are not in memory are computed together."""
        caches = {digest: cache for digest in digests if (cache := self.caches.find(digest)) is not None}
        missing = [digest for digest in digests if digest not in caches]
        for group in group_by_length(missing, lambda digest: self.find(digest).slots, choose_pass_tokens(self.base)):
            caches |= self._compute_caches(group)
        for digest in missing:
            self.caches.keep(digest, caches[digest])
        return [caches[digest] for digest in digests]

    def render(self, question: Question, number: int = 1) -> Rendered:
        """Return a text as token ids; `number` is its place among others, for messages.

        Raises ContextError if it does not fit beside its prompt, DataError if a field is missing or unknown.
        """
        manifest = self.find(question.digest).artifact.manifest
        what = question.what or f"text {number} for {manifest.task}"
        ids = encode_fields(self.base, manifest, question.fields, what)
        return Rendered(question.digest, ids)

    def count_tokens(self, text: Rendered) -> int:
        """Return how many tokens the model reads to rank a text's labels: those of each prompt, with the text's."""
        return sum(length + len(text.ids) for length in self.find(text.digest).lengths)

    def score_labels(self, questions: Sequence[Question]) -> list[Tensor]:
        """Return the score of every label [labels], one tensor per question; prompts may be mixed freely.

        Scores are log-likelihoods in nats up to a constant, as the question's prompt ranks. Each prompt of an ensemble
        is calibrated for itself, then all are combined. Raises ContextError if a text does not fit beside its prompt,
        DataError if a prompt has no labels.
        """
        for question in questions:
            self.find_labels(question.digest)
        return self.score([self.render(question, number) for number, question in enumerate(questions, 1)])

    def score(self, texts: Sequence[Rendered]) -> list[Tensor]:
        """Return the same scores of texts that are token ids already."""
        scores: dict[int, Tensor] = {}
        for part in self._divide(texts):
            batch = self._build_batch([texts[place] for place in part])
            queries = [self._build_queries(texts[place], batch) for place in part]
            own = iter(rank(self.base, batch.cache, [query for group in queries for query in group]))
            for place, group in zip(part, queries, strict=True):
                scores[place] = self._combine(texts[place], [next(own) for _ in group])
        return [scores[place] for place in range(len(texts))]

    def generate(self, questions: Sequence[Question]) -> list[str]:
        """Return the text that follows each question behind its prompt; prompts may be mixed freely.

        Raises ContextError if a text does not fit beside its prompt, DataError if a prompt answers with labels.
        """
        limits = [self.find_limit(question.digest) for question in questions]
        texts = [self.render(question, number) for number, question in enumerate(questions, 1)]
        answers: dict[int, str] = {}
        for part in self._divide(texts):
            cache, first = self._build_batch([texts[place] for place in part])
            openings = [Opening(texts[place].ids, limits[place], first[texts[place].digest]) for place in part]
            answers |= zip(part, generate_texts(self.base, cache, openings), strict=True)
        return [answers[place] for place in range(len(texts))]

    def find_labels(self, digest: str) -> LabelTokens:
        """Return the labels of a loaded prompt; raises DataError if it answers with a text."""
        loaded = self.find(digest)
        check_labels(loaded.artifact.manifest)
        return loaded.labels

    def find_limit(self, digest: str) -> int:
        """Return how many tokens a loaded prompt generates at most; raises DataError if it answers with labels."""
        return find_limit(self.find(digest).artifact.manifest)

    def probe(self, digest: str) -> None:
        """Answer one short question with a loaded prompt; raises ArtifactError if the answer is no finite number."""
        manifest = self.find(digest).artifact.manifest
        text = self.render(Question(digest, dict.fromkeys(read_template(manifest).names, "a")))
        if manifest.generate is None:
            finite = bool(torch.isfinite(self.score([text])[0]).all())
        else:
            scored = LabelTokens(("a",), ((text.ids[0],),))
            finite = bool(torch.isfinite(rank(self.base, self.find_cache(digest), [Query(text.ids, scored, 0)])[0]))
        if not finite:
            raise ArtifactError(
                f"{manifest.task} {digest[:12]}: its first answer is no finite number on this base; train it again"
            )

    def _divide(self, texts: Sequence[Rendered]) -> Iterator[list[int]]:
        """Yield the places of texts that run together: in rising length, with no more prompts than STACKED_SLOTS."""
        part, slots = dict[int, None](), dict[str, int]()
        for place in sorted(range(len(texts)), key=lambda place: len(texts[place].ids)):
            digest = texts[place].digest
            own = 0 if digest in slots else self.find(digest).slots
            if part and own and sum(slots.values()) + own > STACKED_SLOTS:
                yield list(part)
                part, slots = {}, {}
                own = self.find(digest).slots
            part[place] = None
            slots.setdefault(digest, own)
        if part:
            yield list(part)

    def _build_batch(self, texts: Sequence[Rendered]) -> _Batch:
        digests = sorted({text.digest for text in texts})
        caches = self.find_caches(digests)
        starts = accumulate((len(cache.lengths) for cache in caches), initial=0)
        return _Batch(stack_caches(caches), dict(zip(digests, starts, strict=False)))  # the last start is the end

    def _compute_caches(self, digests: Sequence[str]) -> dict[str, PrefixCache]:
        """Return the versions' caches: one pass computes those of all embeddings, key-values are caches already."""
        placed = {digest: self._place_prompts(self.find(digest)) for digest in digests}
        embedded = [digest for digest, own in placed.items() if not any(isinstance(one, KeyValues) for one in own)]
        caches = {}
        with torch.inference_mode():
            if embedded:
                computed = self.base.compute_prefix([one for digest in embedded for one in placed[digest]])
                starts = accumulate((len(placed[digest]) for digest in embedded), initial=0)
                for digest, start in zip(embedded, starts, strict=False):
                    caches[digest] = copy_entries(computed, start, len(placed[digest]))
            for digest in placed.keys() - caches.keys():
                caches[digest] = self.base.compute_prefix(placed[digest])
        return caches

    def _place_prompts(self, loaded: LoadedPrompt) -> list[SoftPrompt]:
        """Return what the model reads before the text, for each prompt of a version."""
        return [
            place_prompt(self.base, unpack(single, *self.base.known), single.manifest.placement)
            for single in loaded.prompts
        ]

    def _find_priors(self, digest: str) -> tuple[Tensor, ...]:
        """Return what calibrates the labels of each prompt of a version, computed once."""
        if digest not in self._priors:
            loaded, cache = self.find(digest), self.find_cache(digest)
            self._priors[digest] = tuple(
                compute_prior(self.base, cache, loaded.labels, prompt) for prompt in range(len(loaded.prompts))
            )
        return self._priors[digest]

    def _build_queries(self, text: Rendered, batch: _Batch) -> list[Query]:
        """Return the text behind each prompt of its version."""
        loaded, first = self.find(text.digest), batch.first[text.digest]
        priors: Sequence[Tensor | None] = [None] * len(loaded.prompts)
        if loaded.labels.content_free:
            priors = self._find_priors(text.digest)
        return [Query(text.ids, loaded.labels, first + index, own) for index, own in enumerate(priors)]

    def _combine(self, text: Rendered, scores: list[Tensor]) -> Tensor:
        members = self.find(text.digest).artifact.manifest.members
        return combine(torch.stack(scores), members.combine) if members else scores[0]


def open_engine(prepared: PreparedBase, settings: Settings) -> Engine:
    """Load the base in the type that this machine takes, and log which and why. Raises what `load_base` raises."""
    choice = choose_dtype(prepared, settings)
    log.info("%s computes in %s: %s", prepared.name, choice.dtype, choice.reason)
    return Engine(load_base(prepared, choice.dtype))
