"""One base that serves many tasks at once: texts per second of mixed batches, against one task, the bare base and PEFT.

All but single requests go through the batcher, each text as a request of its own, all sent at once in a random order.
Every text has the same T tokens, every prompt P=16 virtual tokens stored in 16 bits; labels are ranked. Sides take
turns in one process; a ratio is the median of those of the rounds.

    mixed_over_single    = texts/s of 8 tasks mixed, or of 64, whichever is slower / of one task
    many_over_few        = texts/s of 1,024 tasks / of 16; the slower one of all caches in memory, and half of them
    over_bare            = texts/s of 8 tasks mixed / of the base without prompts, ranked in passes of the same size
    over_peft_switching  = texts/s of 8 tasks mixed / of PEFT with 8 adapters, `set_adapter` before each request
    over_peft_prefill    = seconds of PEFT / ours, for a single request behind a prompt of 100 virtual tokens
    max_logit_err        = largest difference of a float32 logit, rows of a mixed batch against each row alone;
                           methods (prompt, prefix), lengths of prompts (1 to 100) and of texts are mixed
    memory_over_base     = resident memory of 1,024 loaded prompts without caches / bytes of the base's weights

PEFT is called as its users call it: the model it wraps, the text's token ids and mask in, the last token's logits out.
"""

import argparse
import asyncio
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from benchmarks.train_step import describe, load_pair, make_parser
from ptpipeline.data.tokens import label_tokens
from ptpipeline.models.frozen import FrozenBase, Input, KeyValues, SoftPrompt, stack_caches
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.prompts.tensors import pack
from ptpipeline.serving.batcher import Batcher
from ptpipeline.serving.caches import PrefixCaches
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.ranking import Query, rank

LABELS = {"negative": " negative", "positive": " positive"}
P = 16
LONG = 100  # virtual tokens of the prompt before single requests
SIDES = (1, 8, 64)  # tasks of the mixed batches


class Workload(NamedTuple):
    """A base, words of one token each, prompts of as many tasks as there are, and the generator of all chances."""

    base: FrozenBase
    words: list[str]
    prompts: list[Artifact]
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
    return Workload(base, words, [make_prompt(base, number, P) for number in range(tasks)], dice)


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
    gc.collect()
    before = psutil.Process().memory_info().rss
    for manifest, tensors in bodies:
        engine.add(Artifact(kind.model_validate_json(manifest), bytes(bytearray(tensors))))
    gc.collect()
    weights = sum(tensor.nbytes for tensor in base.model.parameters())
    return engine, (psutil.Process().memory_info().rss - before) / weights


async def ask(batcher: Batcher, digests: Sequence[str], texts: Sequence[str]) -> float:
    """Ask text after text, each of its own prompt, all at once; return the texts that are answered in a second."""
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(batcher.classify(digest, [{"text": text}], 3600) for digest, text in zip(digests, texts, strict=True))
    )
    seconds = time.perf_counter() - started
    if not all(isinstance(answer, dict) for own in answers for answer in own):
        raise RuntimeError("a text got no answer")
    return len(texts) / seconds


class Throughput:
    """Texts per second through the batcher: of how many tasks, out of which caches."""

    def __init__(self, engine: Engine, work: Workload, tokens: int) -> None:
        self._engine, self._work, self._tokens = engine, work, tokens
        self._batcher = Batcher(engine, 2**20)
        for prompt in work.prompts:
            self._batcher.hold(prompt)
        self._digests = [prompt.digest for prompt in work.prompts]
        whole = sum(tensor.nbytes for tensor in engine.find_cache(self._digests[0]).tensors) * len(work.prompts)
        self._caches = {"all": PrefixCaches(2 * whole), "half": PrefixCaches(whole // 2)}
        self.bytes_per_cache = whole // len(work.prompts)

    def measure(self, tasks: int, texts: int, caches: str = "all") -> float:
        """Return the texts per second of that many texts of that many tasks."""
        self._engine.caches = self._caches[caches]
        digests = [self._work.dice.choice(self._digests[:tasks]) for _ in range(texts)]
        return asyncio.run(ask(self._batcher, digests, [self._work.text(self._tokens) for _ in digests]))

    def observe_hits(self, caches: str) -> float:
        """Return the share of caches that were in memory when they were needed."""
        own = self._caches[caches]
        return own.hits / max(1, own.hits + own.misses)

    def close(self) -> None:
        """End the computing thread."""
        self._batcher.close()


def measure_bare(work: Workload, texts: int, tokens: int) -> float:
    """Return the texts per second of the base without a prompt."""
    base = work.base
    labels = label_tokens("bare", LABELS, base.encode)
    queries = [Query(base.encode(work.text(tokens), True), labels, 0) for _ in range(texts)]
    started = time.perf_counter()
    rank(base, None, queries)
    return texts / (time.perf_counter() - started)


class Peft:
    """PEFT over a model of its own, with adapters of P virtual tokens each."""

    def __init__(self, frozen: Any, prompts: Sequence[Tensor]) -> None:
        from peft import PromptTuningConfig, TaskType, get_peft_model

        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(prompts[0]))
        self._model: Any = get_peft_model(frozen, config, adapter_name="0").eval()
        for number in range(1, len(prompts)):
            self._model.add_adapter(str(number), config)
        for number, prompt in enumerate(prompts):
            with torch.no_grad():
                self._model.prompt_encoder[str(number)].embedding.weight.copy_(prompt)

    @torch.inference_mode()
    def answer(self, ids: list[int], adapter: int = 0) -> Tensor:
        """Return the logits [V] behind a text."""
        if self._model.active_adapter != str(adapter):
            self._model.set_adapter(str(adapter))
        row = torch.tensor([ids], device=self._model.device)
        logits: Tensor = self._model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, -1]
        return logits


def measure_switching(peft: Peft, work: Workload, texts: int, tokens: int, adapters: int) -> float:
    """Return the texts per second of PEFT, each text of a random adapter."""
    rows = [work.base.encode(work.text(tokens), True) for _ in range(texts)]
    started = time.perf_counter()
    for ids in rows:
        peft.answer(ids, work.dice.randrange(adapters))
    return texts / (time.perf_counter() - started)


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


@contextmanager
def measured(throughput: Throughput) -> Iterator[Throughput]:
    """End the batcher, however the measurement ends."""
    try:
        yield throughput
    finally:
        throughput.close()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures under the names that the last line prints."""
    base, load_again = load_pair(arguments.base, arguments.dtype)
    work, tokens, count = make_workload(base, arguments.tasks), arguments.tokens, arguments.texts
    engine, memory = measure_memory(base, work.prompts)
    rates: dict[str, list[float]] = {}

    def note(name: str, rate: float) -> None:
        rates.setdefault(name, []).append(rate)
        print(f"{name:24} {rate:8.1f} texts/s", flush=True)

    adapters = [base.embed(torch.arange(number * P, (number + 1) * P)).float() for number in range(8)]
    peft = Peft(load_again(), adapters)
    with measured(Throughput(engine, work, tokens)) as throughput:
        throughput.measure(8, count // 4)
        for _ in range(arguments.rounds):
            note("bare", measure_bare(work, count, tokens))
            for tasks in SIDES:
                note(str(tasks), throughput.measure(min(tasks, arguments.tasks), count))
            note("peft switching", measure_switching(peft, work, max(8, count // 16), tokens, len(adapters)))
            many = arguments.tasks * 2
            note("few", throughput.measure(min(16, arguments.tasks), many))
            note("many", throughput.measure(arguments.tasks, many))
            note("many, half in memory", throughput.measure(arguments.tasks, many, "half"))
        hits, cache_bytes = throughput.observe_hits("half"), throughput.bytes_per_cache
    long = make_prompt(base, 10**6, LONG)
    engine.load(long)
    one = Peft(peft._model.get_base_model(), [torch.zeros(LONG, base.ref.hidden_size)])
    prefill = measure_single(
        lambda text: engine.score_labels([Question(long.digest, {"text": text})]),
        lambda text: one.answer(base.encode(text, True)),
        work,
        tokens,
    )
    error = measure_error(work, base if base.dtype == torch.float32 else base.to_float32())
    return _report(rates) | {
        "over_peft_prefill": prefill,
        "max_logit_err": error,
        "memory_over_base": memory,
        "cache_bytes": cache_bytes,
        "half_hits": hits,
        "tasks": arguments.tasks,
        "tokens": tokens,
        "texts": count,
        "rounds": arguments.rounds,
        "peft": version("peft"),
        **describe(base),
    }


def _report(rates: dict[str, list[float]]) -> dict[str, Any]:
    def over(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[above], rates[below], strict=True))

    return {
        "mixed_over_single": min(over("8", "1"), over("64", "1")),
        "many_over_few": min(over("many", "few"), over("many, half in memory", "few")),
        "over_bare": over("8", "bare"),
        "over_peft_switching": over("8", "peft switching"),
        "many_all_in_memory": over("many", "few"),
        "many_half_in_memory": over("many, half in memory", "few"),
        "texts_per_s": {name: statistics.median(own) for name, own in rates.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for each side and round, then the figures as one JSON object on the last line."""
    parser = make_parser("serve_mixed", __doc__, tokens=40, rounds=3)
    parser.add_argument("--tasks", type=int, default=1024, help="tasks that are loaded")
    parser.add_argument("--texts", type=int, default=512, help="texts of each measurement of up to 64 tasks")
    print(json.dumps(run(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
