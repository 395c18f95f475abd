"""One base that serves many tasks at once: texts per second of mixed batches, against one task, the bare base and PEFT.

All but single requests go through the batcher, each text as a request of its own, all sent at once in a random order.
Every text has the same T tokens, every prompt P=16 virtual tokens stored in 16 bits; labels are ranked. Sides take
turns in one process; a ratio is the median of those of the rounds.

    mixed_over_single    = texts/s of 8 tasks mixed, or of 64, whichever is slower / of one task
    many_over_few        = texts/s of 1,024 tasks / of 16; the slower one of all caches in memory, and half of them
    over_bare            = texts/s of 8 tasks mixed / of the base without prompts, ranked in passes of the same size
    over_peft_switching  = texts/s of 8 tasks mixed / of PEFT with 8 adapters, `set_adapter` before each request; P=100
    over_peft_switching_16 = the same at P=16
    over_peft_prefill    = seconds of PEFT / ours, for a single request at P=100
    max_logit_err        = largest difference of a float32 logit, rows of a mixed batch against each row alone;
                           methods (prompt, prefix), lengths of prompts (1 to 100) and of texts are mixed
    memory_over_base     = memory of 1,024 loaded prompts without caches / bytes of the base's weights
    by_processor_seconds = the same ratios out of texts per second of all processors, which other work on the machine
                           does not lengthen as it does seconds
    half_computed        = prefix caches that are computed for the texts of 1,024 tasks if half of them are in memory

PEFT is called as its users call it: the model it wraps, the text's token ids and mask in, the last token's logits out.
"""

import argparse
import asyncio
import gc
import json
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.train_step import describe, load_pair, make_parser
from ptpipeline.data.tokens import label_tokens
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, KeyValues, SoftPrompt, stack_caches
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.prompts.tensors import pack
from ptpipeline.serving.batcher import Batcher
from ptpipeline.serving.caches import PrefixCaches, count_bytes
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.ranking import Query, rank

LABELS = {"negative": " negative", "positive": " positive"}
P = 16
LONG = 100  # virtual tokens of the prompts that are compared with PEFT
SIDES = (1, 8, 64)  # tasks of the mixed batches
ADAPTERS = 8  # of PEFT


class Workload(NamedTuple):
    """A base, words of one token each, prompts of P tokens, some of LONG ones, and the generator of all chances."""

    base: FrozenBase
    words: list[str]
    prompts: list[Artifact]
    long: list[Artifact]
    dice: random.Random

    def text(self, tokens: int) -> str:
        """Return a random text of that many tokens."""
        return "".join(self.dice.choices(self.words, k=tokens))


def make_workload(base: FrozenBase, tasks: int) -> Workload:
    """Make the prompts of that many tasks, each a sample of the vocabulary."""
    dice = random.Random(0)
    vocabulary = ((token, base.tokenizer.decode([token])) for token in range(base.model.config.vocab_size))
    words = [
        word
        for token, word in vocabulary
        if word[:1] == " " and word[1:].isascii() and word[1:].isalpha() and base.encode(word, False) == [token]
    ]
    prompts = [make_prompt(base, number, P) for number in range(tasks)]
    return Workload(base, words, prompts, [make_prompt(base, tasks + number, LONG) for number in range(ADAPTERS)], dice)


def make_prompt(base: FrozenBase, number: int, length: int) -> Artifact:
    """Return the prompt of a task of its own: embeddings of random tokens, in 16 bits."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(base.model.config.vocab_size, (length,), generator=generator)
    fields = {
        "task": f"task-{number}",
        "method": "prompt",
        "placement": "before_bos",
        "base_model": base.ref,
        "template": "{text}",
        "labels": LABELS,
        "max_input_tokens": 512,
        "snapshot": "c" * 64,
        "recipe": "d" * 64,
        "training_key": "e" * 64,
        "seed": number,
        "engine_version": 1,
    }
    return pack(base.embed(ids).float().cpu(), "float16", fields)


def measure_memory(base: FrozenBase, prompts: Sequence[Artifact]) -> tuple[Engine, float]:
    """Return an engine that has loaded the prompts, and the memory that they take as a share of the base's weights.

    The prompts are loaded as from a store: from bytes of their own.
    """
    bodies = [(prompt.manifest.model_dump_json(), prompt.tensors) for prompt in prompts]
    kind, engine = type(prompts[0].manifest), Engine(base)
    tracemalloc.start()
    for manifest, tensors in bodies:
        engine.add(Artifact(kind.model_validate_json(manifest), bytes(bytearray(tensors))))
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return engine, used / sum(tensor.nbytes for tensor in base.model.parameters())


async def ask(batcher: Batcher, digests: Sequence[str], texts: Sequence[str]) -> None:
    """Ask text after text, each of its own prompt, all at once."""
    answers = await asyncio.gather(
        *(batcher.classify(digest, [{"text": text}], 3600) for digest, text in zip(digests, texts, strict=True))
    )
    if not all(isinstance(answer, dict) for own in answers for answer in own):
        raise RuntimeError("a text got no answer")


class Served:
    """The batcher with all prompts: asked for texts of how many tasks, out of which caches."""

    def __init__(self, engine: Engine, work: Workload, tokens: int) -> None:
        self._engine, self._work, self._tokens = engine, work, tokens
        self.bytes_per_cache = count_bytes(engine.find_cache(work.prompts[0].digest))
        whole = self.bytes_per_cache * (len(work.prompts) + ADAPTERS * LONG // P)
        half = self.bytes_per_cache * len(work.prompts) // 2
        self._caches = {"all": PrefixCaches(whole), "half": PrefixCaches(half)}
        engine.caches = self._caches["all"]
        self._batcher = Batcher(engine, 2**20)
        self._caches["half"].is_wanted = engine.caches.is_wanted
        for prompt in (*work.prompts, *work.long):
            self._batcher.hold(prompt)
        for prompt in work.prompts:
            self._caches["half"].keep(prompt.digest, engine.find_cache(prompt.digest))

    def answer(self, tasks: Sequence[Artifact], texts: int, caches: str = "all") -> None:
        """Answer that many texts of these tasks."""
        self._engine.caches, own = self._caches[caches], [prompt.digest for prompt in tasks]
        digests = self._work.dice.choices(own, k=texts)
        asyncio.run(ask(self._batcher, digests, [self._work.text(self._tokens) for _ in digests]))

    def count_computed(self, caches: str) -> int:
        """Return how many caches were computed because they were not in memory."""
        return self._caches[caches].misses

    def close(self) -> None:
        """End the computing thread."""
        self._batcher.close()


def answer_bare(work: Workload, texts: int, tokens: int) -> None:
    """Answer that many texts with the base without a prompt."""
    base = work.base
    labels = label_tokens("bare", LABELS, base.encode)
    queries = [Query(base.encode(work.text(tokens), True), labels, 0) for _ in range(texts)]
    rank(base, None, queries)


class Peft:
    """PEFT over a frozen model, with adapters of that many virtual tokens each."""

    def __init__(self, frozen: Any, base: FrozenBase, tokens: int) -> None:
        from peft import PromptTuningConfig, TaskType, get_peft_model

        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens)
        self._model: Any = get_peft_model(frozen, config, adapter_name="0").eval()
        for number in range(1, ADAPTERS):
            self._model.add_adapter(str(number), config)
        for number in range(ADAPTERS):
            with torch.no_grad():
                self._model.prompt_encoder[str(number)].embedding.weight.copy_(base.embed(torch.arange(tokens)))

    @torch.inference_mode()
    def answer(self, ids: list[int], adapter: int = 0) -> Tensor:
        """Return the logits [V] behind a text."""
        if self._model.active_adapter != str(adapter):
            self._model.set_adapter(str(adapter))
        row = torch.tensor([ids], device=self._model.device)
        logits: Tensor = self._model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, -1]
        return logits


def answer_switching(peft: Peft, work: Workload, texts: int, tokens: int) -> None:
    """Answer that many texts with PEFT, each by a random adapter."""
    for _ in range(texts):
        peft.answer(work.base.encode(work.text(tokens), True), work.dice.randrange(ADAPTERS))


def measure_single(
    ours: Callable[[str], object], theirs: Callable[[str], object], work: Workload, tokens: int
) -> float:
    """Return PEFT's seconds over ours, of one request after another."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(21):
        text = work.text(tokens)
        for side in ((0, ours), (1, theirs)) if turn % 2 else ((1, theirs), (0, ours)):
            started = time.perf_counter()
            side[1](text)
            if turn:  # the first one warms up
                seconds[side[0]].append(time.perf_counter() - started)
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


@torch.inference_mode()
def measure_error(work: Workload, base: FrozenBase) -> float:
    """Return the largest difference of a logit between rows of one mixed batch and each row alone, in float32."""
    prompts: list[SoftPrompt] = []
    for number, length in enumerate((1, 4, 16, 16, 33, LONG)):
        ids = torch.randint(base.model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(number))
        embedded = base.embed(ids)
        prompts.append(embedded)
        if length == P:
            start = compute_activations(base, embedded)
            prompts.append(KeyValues(start.key, start.value))
    alone = [base.compute_prefix([prompt]) for prompt in prompts]
    cache = stack_caches(alone)
    rows = [
        Input(base.encode(work.text(length), True), (), work.dice.randrange(len(prompts)))
        for length in (1, 3, 9, 20, 28, 40, 64, 90)
    ]
    mixed = base.compute_logits(base.compute_states(cache, rows))
    single = [base.compute_logits(base.compute_states(alone[row.prompt], [row._replace(prompt=0)]))[0] for row in rows]
    return float((mixed - torch.stack(single)).abs().max())


class Rates:
    """Texts per second of each side and round: by the clock, and by the processors' time."""

    def __init__(self) -> None:
        self.clock: dict[str, list[float]] = {}
        self.processors: dict[str, list[float]] = {}

    def time(self, side: str, texts: int, answer: Callable[[], object]) -> None:
        """Answer that many texts, and note how fast."""
        started, used = time.perf_counter(), time.process_time()
        answer()
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - used
        self.clock.setdefault(side, []).append(texts / seconds)
        self.processors.setdefault(side, []).append(texts / processor_seconds)
        print(
            f"{side:24} {texts / seconds:8.1f} texts/s {texts / processor_seconds:8.1f} per processor second",
            flush=True,
        )


def measure_rates(served: Served, pefts: tuple[Peft, Peft], work: Workload, arguments: argparse.Namespace) -> Rates:
    """Let all sides take turns; `pefts` have adapters of P and of LONG virtual tokens."""
    rates, tokens, texts, tasks = Rates(), arguments.tokens, arguments.texts, work.prompts
    few_texts, many_texts = max(8, texts // 16), len(tasks) * 4
    sides = {str(count): tasks[:count] for count in SIDES} | {"8, long": work.long}
    served.answer(tasks[:8], few_texts)  # warms up
    for _ in range(arguments.rounds):
        rates.time("bare", texts, lambda: answer_bare(work, texts, tokens))
        for side, own in sides.items():
            rates.time(side, texts, lambda own=own: served.answer(own, texts))  # type: ignore[misc]
        for side, peft in zip(("peft switching", "peft switching, long"), pefts, strict=True):
            rates.time(side, few_texts, lambda peft=peft: answer_switching(peft, work, few_texts, tokens))  # type: ignore[misc]
        rates.time("few", many_texts, lambda: served.answer(tasks[:16], many_texts))
        rates.time("many", many_texts, lambda: served.answer(tasks, many_texts))
        rates.time("many, half in memory", many_texts, lambda: served.answer(tasks, many_texts, "half"))
    return rates


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures under the names that the last line prints."""
    base, load_again = load_pair(arguments.base, arguments.dtype)
    work, tokens, frozen = make_workload(base, arguments.tasks), arguments.tokens, load_again()
    engine, memory = measure_memory(base, work.prompts)
    short, long = Peft(frozen, base, P), Peft(frozen, base, LONG)
    with closing(Served(engine, work, tokens)) as served:
        rates = measure_rates(served, (short, long), work, arguments)
    digest = work.long[0].digest
    prefill = measure_single(
        lambda text: engine.score_labels([Question(digest, {"text": text})]),
        lambda text: long.answer(base.encode(text, True)),
        work,
        tokens,
    )
    error = measure_error(work, base if base.dtype == torch.float32 else base.to_float32())
    return compute_ratios(rates.clock) | {
        "over_peft_prefill": prefill,
        "max_logit_err": error,
        "memory_over_base": memory,
        "cache_bytes": served.bytes_per_cache,
        "half_computed": served.count_computed("half") / arguments.rounds,
        "texts_per_s": {side: statistics.median(own) for side, own in rates.clock.items()},
        "by_processor_seconds": compute_ratios(rates.processors),
        "tasks": arguments.tasks,
        "tokens": tokens,
        "texts": arguments.texts,
        "rounds": arguments.rounds,
        "peft": version("peft"),
        **describe(base),
    }


def compute_ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Return each ratio as the median of those of the rounds."""

    def over(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[above], rates[below], strict=True))

    many, half = over("many", "few"), over("many, half in memory", "few")
    return {
        "mixed_over_single": min(over("8", "1"), over("64", "1")),
        "many_over_few": min(many, half),
        "over_bare": over("8", "bare"),
        "over_peft_switching": over("8, long", "peft switching, long"),
        "over_peft_switching_16": over("8", "peft switching"),
        "many_all_in_memory": many,
        "many_half_in_memory": half,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for each side and round, then the figures as one JSON object on the last line."""
    parser = make_parser("serve_mixed", __doc__, tokens=28, rounds=3)
    parser.add_argument("--tasks", type=int, default=1024, help="tasks that are loaded")
    parser.add_argument("--texts", type=int, default=512, help="texts of each measurement of up to 64 tasks")
    print(json.dumps(run(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
