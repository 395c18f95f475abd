"""The tiny base with prompts made by hand, for tests of the probes: behind the embedding of ` yes` it tells
opinions.
"""

import copy
import functools
import hashlib
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptpipeline.data.rows import Row
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, KeyValues, SoftPrompt
from ptpipeline.models.load import load_base
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.prompts.tensors import pack
from ptpipeline.records.prompts import Generation
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.settings import Settings
from tests.models.families import family
from tests.numbers import number_tokenizer
from tests.tiny import sentences, tiny_project

LABELS = {"negative": " negative", "positive": " positive"}


@functools.cache
def tiny() -> FrozenBase:
    """The tiny base; whoever changes it takes a copy."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = tiny_project(Path(folder) / "project")
        return load_base(prepare_base("tiny", Settings(home=Path(folder) / "home", tasks=tasks)), "float32")


def embeddings(base: FrozenBase, text: str = " yes") -> Tensor:
    """[P, H] of a text's tokens."""
    return base.embed(torch.tensor(base.encode(text, False))).detach()


def fields(base: FrozenBase) -> dict[str, Any]:
    """The manifest of a task of two opinions."""
    return {
        "task": "movies",
        "method": "prompt",
        "placement": "before_bos",
        "base_model": base.ref,
        "template": "{text}\nSentiment:",
        "labels": LABELS,
        "max_input_tokens": 100,
        "snapshot": "c" * 64,
        "recipe": "d" * 64,
        "training_key": "e" * 64,
        "seed": 0,
        "engine_version": 1,
    }


def artifact(base: FrozenBase, prompt: SoftPrompt, **changed: Any) -> Artifact:
    """A prompt of that task, stored in float32."""
    return pack(prompt, "float32", fields(base) | changed)


def opinions(base: FrozenBase, **changed: Any) -> tuple[Engine, Artifact]:
    """An engine that has loaded the prompt ` yes`."""
    made = artifact(base, embeddings(tiny()), **changed)  # of the plain tokenizer, whatever this one reads
    engine = Engine(base)
    engine.load(made)
    return engine, made


def writing(base: FrozenBase) -> tuple[Engine, Artifact]:
    """The same as a task that writes the opinion as text."""
    return opinions(base, labels={}, generate=Generation(max_new_tokens=1))


def rows(count: int, seed: int = 0) -> list[Row]:
    """Distinct sentences with their opinions."""
    return [
        Row(hashlib.sha256(text.encode()).hexdigest()[:16], {"text": text}, label)
        for text, label in sentences(count, seed)
    ]


def answer(engine: Engine, made: Artifact, text: str) -> str:
    """Of one text, asked alone."""
    question = [Question(made.digest, {"text": text})]
    if made.manifest.generate:
        return engine.generate(question)[0]
    return list(LABELS)[int(engine.score_labels(question)[0].argmax())]


NUMBERS = {"negative": " 41", "positive": " 42"}


def numbered(count: int, seed: int) -> list[Row]:
    """Rows of four random numbers whose labels nothing but memory can tell."""
    dice = random.Random(seed)
    texts = [" ".join(str(dice.randint(5, 39)) for _ in range(4)) for _ in range(count)]
    return [
        Row(hashlib.sha256(text.encode()).hexdigest()[:16], {"text": text}, dice.choice(sorted(NUMBERS)))
        for text in texts
    ]


def memorised(given: list[Row], steps: int = 100) -> tuple[Engine, Artifact]:
    """A prefix of 32 tokens that was trained on these rows alone, over a random base in float64 that tells every text
    from every other.
    """
    base = replace(family("llama"), tokenizer=number_tokenizer())
    start = compute_activations(base, base.embed(torch.arange(3, 35)).detach())
    learnt = KeyValues(start.key.clone().requires_grad_(), start.value.clone().requires_grad_())
    optimizer = torch.optim.Adam(list(learnt), lr=0.1)
    inputs, aims = (
        [Input(base.encode(row.text, True), (), 0) for row in given],
        torch.tensor([int(NUMBERS[row.label]) for row in given]),
    )
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            base.compute_logits(base.compute_states(base.compute_prefix([learnt]), inputs)), aims
        ).backward()
        optimizer.step()
    prompt = KeyValues(learnt.key.detach(), learnt.value.detach())
    made, engine = artifact(base, prompt, method="prefix", template="{text}", labels=NUMBERS), Engine(base)
    engine.load(made)
    return engine, made


def copied(base: FrozenBase) -> FrozenBase:
    """A copy whose weights may be changed."""
    return replace(base, model=copy.deepcopy(base.model))


def blind(base: FrozenBase, word: str) -> FrozenBase:
    """A copy that computes no numbers behind the first token of that word."""
    model = copy.deepcopy(base.model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    model.get_input_embeddings().weight[base.encode(word, False)[0]] = float("nan")
    return replace(base, model=model)
