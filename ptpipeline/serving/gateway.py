"""Answers by a vLLM server: for bases that are larger than this machine.

Only the base's tokenizer and embeddings are here. A request sends vLLM the prompt with the embedded text behind it, so
clients never send tensors, and vLLM needs to know no prompt. Prefixes are keys and values, which vLLM does not take.

Letters: P virtual tokens, T tokens, H width.
"""

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ptpipeline.data.tokens import LabelTokens
from ptpipeline.errors import (
    BaseModelError,
    ContextError,
    DataError,
    NotFound,
    Overloaded,
    PtpError,
    ServiceUnavailable,
    Terminal,
    TimedOut,
)
from ptpipeline.models.base import PreparedBase
from ptpipeline.models.inputs import KeyValues
from ptpipeline.models.load import load_vocabulary
from ptpipeline.models.vocabulary import Vocabulary
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import check_base, unpack
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.serving.answerer import Load, Piece, Sampling, ignore
from ptpipeline.serving.combine import combine
from ptpipeline.serving.ranking import average, name_probabilities, normalise
from ptpipeline.serving.streaming import Trim
from ptpipeline.serving.tokens import check_labels, encode_fields, encode_labels, find_limit
from ptpipeline.serving.vllm import Upstream, UpstreamModel
from ptpipeline.task.template import Fields, read_template

MOST_TEXTS = 1024  # that wait for vLLM at once, with what they take here: their embeddings in base64
HOLD_SECONDS = 180.0  # for the questions that a prompt is asked before it is held
SAME = 0.1  # nats between two ways to the same states, which 16 bits round otherwise
KEY = "PTP_UPSTREAM_KEY"  # the variable with vLLM's key, from the environment alone
CANARY = "The quick brown fox jumps over the lazy dog."

Result = TypeVar("Result")


class _Held(NamedTuple):
    """A verified prompt: its embeddings [P, H], several of an ensemble; its label tokens, and the prior of each prompt
    if the labels are calibrated.
    """

    manifest: PromptManifest
    prompts: tuple[Tensor, ...]
    labels: LabelTokens
    priors: tuple[Tensor, ...] = ()


def open_gateway(prepared: PreparedBase, url: str) -> "Gateway":
    """Return a gateway to the vLLM server at `url`, with the key of the environment; nothing is asked yet.

    Raises SettingsError for an address that is none, and what `load_vocabulary` raises.
    """
    return Gateway(load_vocabulary(prepared), url, os.environ.get(KEY))


class Gateway:
    """An Answerer over one vLLM server; `key` is what that was started with as `--api-key`."""

    def __init__(self, base: Vocabulary, url: str, key: str | None = None) -> None:
        self.base = base
        self._open = partial(Upstream, url, key)
        self._upstream = self._open()
        self._model = UpstreamModel("", None)
        self._held: dict[str, _Held] = {}
        self._tasks = Counter[str]()  # texts that wait for vLLM, by task
        self._generating = 0
        self._draining = False

    def hold(self, artifact: Artifact, members: Sequence[Artifact] = ()) -> None:
        """Verify a prompt, or an ensemble with its `members`, ask vLLM one question, and answer with it from now on.

        Call it from a thread without an event loop. Raises BaseModelError if the prompt is of another base or a
        prefix, or if vLLM serves another base; ArtifactError for altered bytes; TimedOut if vLLM does not answer, and
        what else `Upstream` raises.
        """
        if artifact.digest in self._held:
            return
        check_base(artifact, *self.base.known)
        prompts = tuple(self._place(single) for single in members or [artifact])
        held = _Held(artifact.manifest, prompts, encode_labels(self.base, artifact.manifest))
        try:
            self._held[artifact.digest] = asyncio.run(self._try(held))
        except ServiceUnavailable as error:  # that would tell `serving.live` that the store is away
            raise TimedOut(str(error)) from None

    def drop(self, digest: str) -> None:
        """Answer nothing more with this prompt; requests that it is answering end as they began."""
        self._held.pop(digest, None)

    def observe(self) -> Load:
        """Return what it does, as a batcher tells it; batches and caches are vLLM's own."""
        return Load(self._tasks.total(), self._generating, 0, 0, 0, 0, 0, True)

    async def drain(self, patience: float) -> None:
        """Take no more requests, and end the connections to vLLM once all are answered; TimedOut if that is longer."""
        self._draining = True
        try:
            async with asyncio.timeout(patience):
                while self._tasks.total():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise TimedOut(f"{self._tasks.total()} texts still have no answer after {patience:g} s") from None
        finally:
            await self._upstream.close()

    def close(self) -> None:
        """Take no more requests."""
        self._draining = True

    async def classify(
        self, digest: str, texts: Sequence[Fields], patience: float, count: Callable[[int], object] = ignore
    ) -> list[dict[str, float] | PtpError]:
        """Return for each text the probability of each label, most likely first, or the error of this text alone."""
        held = self._find(digest)
        check_labels(held.manifest)
        with self._room(held, len(texts)):
            jobs = [self._classify(held, fields, number, count) for number, fields in enumerate(texts, 1)]
            return await _wait(_gather(jobs), patience)

    async def generate(self, digest: str, fields: Fields, sampling: Sampling, patience: float) -> AsyncIterator[Piece]:
        """Generate the text that follows, piece by piece; `patience` is how long each piece may take."""
        held = self._find(digest)
        manifest, most = held.manifest, find_limit(held.manifest)
        ids = encode_fields(self.base, manifest, fields, f"the text for {manifest.task}")
        limit = most if sampling.max_tokens is None else sampling.max_tokens
        self._check_length(held, len(ids) + limit)
        prompt = self._join(held.prompts[0], ids)
        options = {
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": [string for string in sampling.stop if string],
            "stop_token_ids": sorted(self.base.end_tokens),
            "seed": sampling.seed,
        }
        with self._room(held, 1):
            self._generating += 1
            try:
                async with aclosing(self._upstream.stream(self._model.name, prompt, options)) as deltas:
                    trim = Trim()
                    while True:
                        delta = await _wait(anext(deltas), patience)
                        text = trim.push(delta.text)
                        if text or delta.finish is not None:
                            yield Piece(text, delta.tokens, len(prompt), delta.finish)
                        if delta.finish is not None:
                            return
            finally:
                self._generating -= 1

    def _find(self, digest: str) -> _Held:
        if digest not in self._held:
            raise NotFound(f"no prompt {digest[:12]} is held here: it was dropped, or never loaded")
        return self._held[digest]

    @contextmanager
    def _room(self, held: _Held, count: int) -> Iterator[None]:
        """Count texts that wait for vLLM; raises Overloaded if they are too many.

        A task may have as many as there is room left for other tasks', as in `serving.batcher`.
        """
        task, waiting = held.manifest.task, self._tasks.total()
        if self._draining:
            raise Overloaded("this server is about to end; ask another one", 1.0)
        if count > MOST_TEXTS:
            raise DataError(f"{count} texts in one request; give at most {MOST_TEXTS}")
        if self._tasks[task] + count > MOST_TEXTS - waiting:
            raise Overloaded(f"{waiting} texts wait for vLLM, {self._tasks[task]} of them for {task}; try again", 1.0)
        self._tasks[task] += count
        try:
            yield
        finally:
            self._tasks[task] -= count

    def _place(self, artifact: Artifact) -> Tensor:
        """Return what vLLM reads before the text: the prompt [P, H], or `[BOS][prompt]` [1 + P, H]."""
        prompt = place_prompt(self.base, unpack(artifact, *self.base.known), artifact.manifest.placement)
        if isinstance(prompt, KeyValues):
            raise BaseModelError(
                f"{artifact.manifest.task} {artifact.digest[:12]}: a prefix is keys and values, and vLLM takes "
                "embeddings only; serve it without --upstream, or train with another method"
            )
        return prompt

    def _join(self, prompt: Tensor, ids: Sequence[int]) -> Tensor:
        """Return the embeddings [P + T, H] of prompt and text, in the smallest type that holds both exactly."""
        return torch.cat([prompt, self.base.embed(torch.tensor(ids))])

    def _check_length(self, held: _Held, count: int) -> None:
        """Raise ContextError if prompt, text and answer have more tokens than fit; `count` are those of the latter."""
        longest = min(self.base.context, self._model.context or self.base.context)
        tokens = count + max(len(prompt) for prompt in held.prompts)
        if tokens > longest:
            raise ContextError(
                f"{held.manifest.task}: prompt, text and answer may have {longest} tokens, as vLLM was started, and "
                f"would have {tokens}; shorten the text, or ask for fewer tokens"
            )

    async def _try(self, held: _Held) -> _Held:
        """Return the prompt with its priors, once vLLM answered with it and is seen to serve this base."""
        upstream = self._open()  # this event loop's own
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                self._model = await upstream.find_model()
                await self._compare_embeddings(upstream)
                priors = [
                    average(await _gather([self._rank(upstream, prompt, held.labels, ids) for ids in free]))
                    for prompt in held.prompts
                    if (free := held.labels.content_free)
                ]
                held = held._replace(priors=tuple(priors))
                blank = dict.fromkeys(read_template(held.manifest).names, "a")
                ids = encode_fields(self.base, held.manifest, blank, f"a first text for {held.manifest.task}")
                if held.labels.names:
                    await self._score(upstream, held, ids)
                else:
                    await upstream.score_next(self._model.name, self._join(held.prompts[0], ids), [ids[-1]])
        except TimeoutError:
            raise TimedOut(
                f"vLLM at {upstream.url} did not answer the first questions within {HOLD_SECONDS:.0f} s"
            ) from None
        finally:
            await upstream.close()
        return held

    async def _compare_embeddings(self, upstream: Upstream) -> None:
        """Raise BaseModelError unless one text as token ids and as embeddings comes to the same in vLLM."""
        ids, name = self.base.encode(CANARY, True), self._model.name
        tokens = sorted(set(ids))
        by_ids, by_embeddings = await _gather(
            [
                upstream.score_next(name, ids, tokens),
                upstream.score_next(name, self.base.embed(torch.tensor(ids)), tokens),
            ]
        )
        apart = max(abs(by_ids[token] - by_embeddings[token]) for token in tokens)
        if apart > SAME:
            raise BaseModelError(
                f"vLLM at {upstream.url} serves {name}, whose embeddings are not those of {self.base.ref.name}, or are "
                f"scaled there: one text as tokens and as embeddings differs by {apart:.2f} nats; let vLLM serve the "
                "folder that `ptp` uses, or serve this base without --upstream"
            )

    async def _classify(
        self, held: _Held, fields: Fields, number: int, count: Callable[[int], object]
    ) -> dict[str, float] | PtpError:
        try:
            ids = encode_fields(self.base, held.manifest, fields, f"text {number} for {held.manifest.task}")
            self._check_length(held, len(ids) + held.labels.longest)
            scores = await self._score(self._upstream, held, ids)
            count(sum(len(prompt) + len(ids) for prompt in held.prompts))
            named = name_probabilities(held.manifest.task, held.labels.names, scores)
        except Terminal as error:
            return error
        return dict(sorted(named.items(), key=lambda pair: -pair[1]))

    async def _score(self, upstream: Upstream, held: _Held, ids: Sequence[int]) -> Tensor:
        """Return the score of every label [labels] as `serving.engine` computes it."""
        rows = await _gather([self._rank(upstream, prompt, held.labels, ids) for prompt in held.prompts])
        if held.priors:
            rows = [row - prior for row, prior in zip(rows, held.priors, strict=True)]
        return combine(torch.stack(rows), held.manifest.members.combine) if held.manifest.members else rows[0]

    async def _rank(self, upstream: Upstream, prompt: Tensor, labels: LabelTokens, ids: Sequence[int]) -> Tensor:
        """Return the log-likelihood of every label [labels] behind a prompt and a text, per token if they rank so.

        vLLM is asked once for each distinct beginning of a label: it tells of one next token alone.
        """
        following: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for tokens in labels.ids:
            for place, token in enumerate(tokens):
                following[tokens[:place]].add(token)
        told = await _gather(
            [
                upstream.score_next(self._model.name, self._join(prompt, [*ids, *begin]), sorted(tokens))
                for begin, tokens in following.items()
            ]
        )
        scores = dict(zip(following, told, strict=True))
        sums = [sum(scores[tokens[:place]][token] for place, token in enumerate(tokens)) for tokens in labels.ids]
        return normalise(torch.tensor(sums), labels)


async def _wait(job: Awaitable[Result], patience: float) -> Result:
    """Return what the job gives; raise TimedOut if it takes longer than `patience` seconds."""
    try:
        async with asyncio.timeout(patience):
            return await job
    except TimeoutError:
        raise TimedOut(f"vLLM did not answer within {patience:.3g} s; ask for less, or wait longer") from None


async def _gather(jobs: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return what all jobs give; if one fails or the caller leaves, the others end too."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
