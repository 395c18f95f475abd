"""Texts generated together: our decoder against transformers' ContinuousBatchingManager and against fixed batches.

    over = seconds of another side / our seconds, by the clock
    over_processor = the same by the processors' time, which other work on the machine does not lengthen

`fixed` is `base.decode` on batches that stay together. All sides have the same requests: 8 soft prompts of 16 virtual
tokens, texts of 24 to 64 tokens, the same number of greedy tokens of each, of which none ends a text. The manager is
started once and stays. It has no soft prompts: its model reads rows of a table for ids above the vocabulary, and it
shares pages of 16 tokens, so a prompt is computed once. Rounds are interleaved, medians of rounds.
"""

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.fixtures.random_base import NAMES
from benchmarks.train_step import describe, load_pair, make_parser
from ptpipeline.data.batches import group_by_length
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input
from ptpipeline.serving.answerer import Sampling
from ptpipeline.serving.answers import TOKENS_PER_DECODE
from ptpipeline.serving.decoding import READ_TOKENS, SLOTS, Decoder

TASKS, VIRTUAL = 8, 16
PATIENCE_SECONDS = 600
PAGE = 16  # tokens of a page of the manager's; smaller ones share no more, since a prompt has as many

Texts = list[str]


class Request(NamedTuple):
    """A text's tokens, and the index of the prompt before it."""

    ids: list[int]
    prompt: int


class Load(NamedTuple):
    """What all sides are given: prompts [P, H] each, requests, the number of tokens to generate for each."""

    prompts: list[Tensor]
    requests: list[Request]
    limit: int


def make_load(base: FrozenBase, count: int, lengths: Sequence[int], limit: int) -> Load:
    """Return requests by a seeded draw, with texts between two lengths; prompts are embeddings of words."""
    dice, generator = random.Random(count), torch.Generator().manual_seed(1)
    vocabulary = base.model.config.vocab_size
    prompts = [base.embed(torch.randint(vocabulary, (VIRTUAL,), generator=generator)) for _ in range(TASKS)]
    requests = [
        Request([dice.randrange(vocabulary) for _ in range(dice.randint(*lengths))], index % TASKS)
        for index in range(count)
    ]
    return Load(prompts, requests, limit)


def make_ours(base: FrozenBase, load: Load) -> Callable[[], Texts]:
    """Return the decoder's side: all requests join at once."""
    cache = base.compute_prefix(load.prompts)

    def run() -> Texts:
        decoder, texts = Decoder(base), defaultdict[int, str](str)
        for request in load.requests:
            decoder.join(cache, request.ids, Sampling(), load.limit, request.prompt)
        while len(decoder):
            for handle, piece in decoder.step():
                if isinstance(piece, Exception):
                    raise SystemExit(str(piece))
                texts[handle] += piece.text
        return [texts[handle] for handle in range(len(load.requests))]

    return run


def make_fixed(base: FrozenBase, load: Load) -> Callable[[], Texts]:
    """Return the side of fixed batches, as the gate generates."""
    cache = base.compute_prefix(load.prompts)
    inputs = [Input(request.ids, (), request.prompt) for request in load.requests]

    def run() -> Texts:
        texts = [""] * len(inputs)
        groups = group_by_length(range(len(inputs)), lambda index: inputs[index].length + load.limit, TOKENS_PER_DECODE)
        for group in groups:
            for index, ids in zip(
                group, base.decode(cache, [inputs[index] for index in group], load.limit), strict=True
            ):
                texts[index] = _write(base, ids)
        return texts

    return run


class _Table(nn.Module):
    """An input embedding that reads ids above the vocabulary from rows of prompts."""

    def __init__(self, own: Any, rows: Tensor) -> None:
        super().__init__()
        self.own, self.rows, self.first = own, rows, own.weight.shape[0]

    def forward(self, ids: Tensor) -> Tensor:
        virtual = (ids - self.first).clamp(min=0)
        own = self.own(ids.clamp(max=self.first - 1))
        return torch.where((ids >= self.first)[..., None], self.rows[virtual], own)


@contextmanager
def open_manager(base: FrozenBase, load: Load, together: int) -> Iterator[Callable[[], Texts]]:
    """Start transformers' manager on the base's own model, and give its side; `together` bounds the rows of a step.

    The model attends by torch's fused kernel while the side runs, as the manager wants it.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, own, attention = base.model, base.model.get_input_embeddings(), base.model.config._attn_implementation
    settings = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=SLOTS // PAGE, max_batch_tokens=READ_TOKENS, max_requests_per_batch=together
    )
    model.set_attn_implementation("sdpa")
    model.set_input_embeddings(_Table(own, torch.cat(load.prompts)))
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(generation, settings)
    manager.start()

    def run(requests: Sequence[Request]) -> Texts:
        model.set_attn_implementation("sdpa")
        numbers = {}
        for number, request in enumerate(requests):
            start = own.weight.shape[0] + request.prompt * VIRTUAL
            ids = [*range(start, start + VIRTUAL), *request.ids]
            numbers[manager.add_request(ids, max_new_tokens=load.limit, eos_token_id=-1)] = number
        texts = [""] * len(numbers)
        while numbers:
            result = manager.get_result(timeout=PATIENCE_SECONDS)
            if result is None or result.error:
                raise SystemExit(f"the manager gave no result: {result and result.error}")
            texts[numbers.pop(result.request_id)] = _write(base, result.generated_tokens)
        model.set_attn_implementation(attention)
        return texts

    try:
        run(load.requests[:TASKS])  # so that it has not to warm up either
        yield lambda: run(load.requests)
    finally:
        manager.stop(hard_stop=True, timeout=60)
        model.set_input_embeddings(own)
        model.set_attn_implementation(attention)


def _write(base: FrozenBase, ids: Sequence[int]) -> str:
    text: str = base.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()


def measure(sides: dict[str, Callable[[], Texts]], rounds: int) -> dict[str, Any]:
    """Return each side's median seconds, of the clock and of the processor, and the share of texts equal to ours."""
    clock, processor, texts = defaultdict(list), defaultdict(list), dict[str, Texts]()
    for turn in range(rounds):
        for name in list(sides) if turn % 2 == 0 else reversed(sides):
            before = time.perf_counter(), time.process_time()
            texts[name] = sides[name]()
            clock[name].append(time.perf_counter() - before[0])
            processor[name].append(time.process_time() - before[1])
    return {
        name: {
            "seconds": statistics.median(clock[name]),
            "processor_s": statistics.median(processor[name]),
            "same_texts": statistics.mean(a == b for a, b in zip(texts[name], texts["ours"], strict=True)),
        }
        for name in sides
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line per side, then the figures as one JSON object on the last line."""
    parser = make_parser("serve_spike", __doc__, rounds=3)
    parser.add_argument("--requests", type=int, nargs="+", default=[8, 64, 512], help="requests at once")
    parser.add_argument("--lengths", type=int, nargs=2, default=[24, 64], help="tokens of the shortest, longest text")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens to generate for each")
    parser.add_argument("--together", type=int, default=64, help="rows of a step of the manager's")
    parser.add_argument("--without", nargs="*", default=[], choices=["manager", "fixed"], help="sides to leave out")
    parser.set_defaults(dtype="bfloat16")
    arguments = parser.parse_args(argv)
    base, _ = load_pair(arguments.base, arguments.dtype)
    if arguments.base in NAMES:  # a random base, which has no tokenizer
        base = replace(
            base, tokenizer=SimpleNamespace(eos_token_id=None, decode=lambda ids, **_: " ".join(map(str, ids)))
        )
    base.model.generation_config.eos_token_id = -1  # no token ends a text
    base.tokenizer.eos_token = None
    for make in (make_ours, make_fixed):  # so that none has to warm up the processor's kernels
        make(base, make_load(base, TASKS, arguments.lengths, 4))()
    figures = {count: _measure_count(base, arguments, count) for count in arguments.requests}
    print(
        json.dumps(
            {"requests": figures, "lengths": arguments.lengths, "new_tokens": arguments.new_tokens, **describe(base)}
        )
    )


def _measure_count(base: FrozenBase, arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    load = make_load(base, count, arguments.lengths, arguments.new_tokens)
    sides = {"ours": make_ours(base, load)}
    if "fixed" not in arguments.without:
        sides["fixed"] = make_fixed(base, load)
    with ExitStack() as stack:
        if "manager" not in arguments.without:
            sides["manager"] = stack.enter_context(open_manager(base, load, arguments.together))
        measured = measure(sides, arguments.rounds)
    for name, of_side in measured.items():
        tokens = count * arguments.new_tokens
        print(
            f"{count} requests, {name}: {of_side['seconds']:.2f} s, {of_side['processor_s']:.2f} s of processors, "
            f"{tokens / of_side['seconds']:.0f} tokens/s, {of_side['same_texts']:.2f} of the texts are ours"
        )
        if name != "ours":
            of_side["over"] = of_side["seconds"] / measured["ours"]["seconds"]
            of_side["over_processor"] = of_side["processor_s"] / measured["ours"]["processor_s"]
    return measured


if __name__ == "__main__":
    main()
