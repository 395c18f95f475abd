"""What serving takes on a GPU: a batch in which every row has a prompt of its own, against one prompt and against none.

Like `benchmarks.gpu` it needs torch and transformers alone, and no base model: the base has random weights. Without a
GPU it runs on the CPU with a small base (`--quick`). Each line is one JSON object.

    mixed_over_single, over_bare    rows per second of a forward pass over rows of 64 prompts out of 1,024, against rows
                                    of one prompt, and against the same texts without any prompt
    tokens_per_s, tokens_over_bare  tokens per second of generation step by step, and against rows without prompts
    error                           worst relative error of the mixed rows' states to the same rows one by one
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch

from benchmarks.fixtures.random_base import make_random_base
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import Input, PrefixCache, stack_caches
from ptpipeline.models.slots import Slots

TASKS, ROWS, TOKENS, PROMPT = 1024, 64, 40, 16


def make_caches(base: CausalBase) -> list[PrefixCache]:
    """Return the prefix caches of random prompts, one each."""
    dice = torch.Generator().manual_seed(0)
    prompts = [0.02 * torch.randn(PROMPT, base.model.config.hidden_size, generator=dice) for _ in range(TASKS)]
    caches = []
    for start in range(0, TASKS, ROWS):
        together = base.compute_prefix(prompts[start : start + ROWS])
        for place in range(ROWS):
            tensors = tuple(tensor[place : place + 1].clone() for tensor in together.tensors)
            caches.append(PrefixCache(tensors, together.lengths[place : place + 1]))
    return caches


def make_texts(base: CausalBase, tokens: int) -> list[list[int]]:
    """Return random texts, one per row."""
    dice = torch.Generator().manual_seed(1)
    return torch.randint(3, base.model.config.vocab_size, (ROWS, tokens), generator=dice).tolist()


def time_median(run: Callable[[], Any], rounds: int) -> float:
    """Return the median seconds of a run, after two that warm up."""
    seconds = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[2:])[rounds // 2]


def generate(base: CausalBase, cache: PrefixCache | None, inputs: Sequence[Input], steps: int) -> float:
    """Return the tokens per second of so many steps of all rows."""
    states, (own,) = base.begin(cache, inputs)
    slots = [Slots()]
    slots[0].add(own)
    for step in range(steps + 4):
        if step == 4:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
        states = base.step(slots, base.compute_logits(states).argmax(-1))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return steps * len(inputs) / (time.perf_counter() - started)


@torch.inference_mode()
def measure(base: CausalBase, rounds: int, steps: int) -> dict[str, float]:
    """Return the figures of one base."""
    caches, inputs = make_caches(base), [Input(text, (), row) for row, text in enumerate(make_texts(base, TOKENS))]
    same, turn = [row._replace(prompt=0) for row in inputs], count(0, ROWS)

    def take_caches() -> PrefixCache:
        start = next(turn)
        return stack_caches([caches[(start + row) % TASKS] for row in range(ROWS)])

    def score(cache: PrefixCache | None, rows: Sequence[Input]) -> torch.Tensor:
        return base.compute_logits(base.compute_states(cache, rows))

    mixed = time_median(lambda: score(take_caches(), inputs), rounds)
    single = time_median(lambda: score(caches[0], same), rounds)
    bare = time_median(lambda: score(None, same), rounds)
    cache = stack_caches(caches[:ROWS])
    alone = torch.cat([score(caches[row], [same[row]]) for row in range(4)])
    with_prompts, without = generate(base, cache, inputs, steps), generate(base, None, same, steps)
    return {
        "rows_per_s": ROWS / mixed,
        "mixed_over_single": single / mixed,
        "over_bare": bare / mixed,
        "tokens_per_s": with_prompts,
        "tokens_over_bare": with_prompts / without,
        "error": float((score(cache, inputs)[:4] - alone).norm() / alone.norm()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print one JSON object for each base."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_serving", description="serving on a GPU")
    parser.add_argument("--quick", action="store_true", help="a small base and few rounds, for a CPU")
    quick = parser.parse_args(argv).quick
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for name in ("random-llama",) if quick else ("random-llama-135m", "random-llama-1b"):
        figures = measure(make_random_base(name, torch.bfloat16), 3 if quick else 15, 8 if quick else 64)
        print(json.dumps({"base": name, **figures, "machine": machine}), flush=True)


if __name__ == "__main__":
    main()
