"""Names of control tokens in rows, labels, targets and questions stay text through the whole chain.

Each run is repeated on a base that reads its control tokens as something else. If one text anywhere became a control
token, the prompt that is trained, its figures or its answers would differ.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load, load_file, save_file

import ptpipeline
from ptpipeline.evaluation.results import Results
from ptpipeline.prompts.artifact import read_artifact
from tests.flows.project import Project
from tests.tiny import WEIGHTS, sentences, write_csv

NAME = "tiny-sentiment"
NAMES = ("</s>", "<s>", " </s><s> ")
CHATML = "{% for message in messages %}{{ message.content + '\n' }}{% endfor %}{{ 'Sentiment:' }}"


class Seen(NamedTuple):
    """All that a run came to in which a control token would show."""

    tensors: dict[str, list[Any]]
    results: dict[str, dict[str, dict[str, Any]]]
    answers: list[Any]


def untie(base: Path, moved: bool) -> None:
    """Give the base a table of its own for what it reads; if `moved`, its control tokens are read as something else."""
    weights = load_file(base / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    if moved:
        weights["model.embed_tokens.weight"][:3] = weights["model.embed_tokens.weight"][40:43] * -3
    save_file(weights, base / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))


def mark(number: int, text: str) -> str:
    words = text.split()
    return " ".join([*words[:1], NAMES[number % 3], *words[1:]])


def run(folder: Path, moved: bool, *edits: tuple[str, str]) -> Seen:
    project = Project(folder, (NAME,))
    untie(folder / "base", moved)
    (folder / "base/chat_template.jinja").write_text(CHATML)
    project.edit("learning_rate: 0.05", "learning_rate: 0.02")
    project.edit("minimum: 0.7, champion: {rule: non_inferiority, margin: 0.2}", "minimum: 0, checks: {gain: off}")
    for old, new in edits:
        project.edit(old, new)
    free = project.task().generate is not None
    rows = [
        (text, mark(n, label)) if free else (mark(n, text), label) for n, (text, label) in enumerate(sentences(240))
    ]
    write_csv(folder / f"{NAME}.csv", rows)
    assert project.run().version == 1
    registry = project.stages.registry
    digest = registry.ledger.version(NAME, 1).digest
    report = registry.ledger.report_of(NAME, digest)
    assert report is not None
    reports = {"prompt": report} | {kind: registry.ledger.report(key) for kind, key in report.baselines.items()}
    results = {kind: Results.of(registry.store, one).columns for kind, one in reports.items() if one is not None}
    texts = ["the lovely story", "a dull scene"] if free else ["</s> the lovely story", "a dull <s></s> scene", "good"]
    answers = ptpipeline.load(f"{NAME}@1", project.settings).predict(texts)
    kept = [one.model_dump(exclude={"digest", "milliseconds"}) for one in answers]
    tensors = load(read_artifact(registry.store, NAME, digest).tensors)
    return Seen({name: tensor.float().flatten().tolist() for name, tensor in tensors.items()}, results, kept)


TASKS: dict[str, list[tuple[str, str]]] = {
    "labels": [('labels: {negative: " negative"', 'labels: {negative: " </s> bad"')],
    "template": [('template: "{text}', 'template: "<s> {text} </s>')],
    "chat": [('template: "{text}\\nSentiment:"', "template: {chat: [{role: user, content: 'Judge </s> {text}'}]}")],
    "targets": [
        ("  label: label\n", "  target: label\n"),
        ('labels: {negative: " negative", positive: " positive"}', "generate: {max_new_tokens: 12}"),
        ("metric: accuracy", "metric: exact_match"),
    ],
}


@pytest.mark.parametrize("task", TASKS)
def test_what_the_base_reads_as_control_tokens_changes_nothing(tmp_path: Path, task: str) -> None:
    seen = []
    for moved in (False, True):
        folder = tmp_path / str(moved)
        folder.mkdir()
        seen.append(run(folder, moved, *TASKS[task]))
    one, two = seen
    assert one.tensors
    assert {"prompt", "zero_shot"} <= one.results.keys()
    assert_close(one._asdict(), two._asdict())


def assert_close(one: Any, two: Any) -> None:
    """Both hold the same, and equal numbers but for the last digits."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_close(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_close(first, second)
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    else:
        assert one == two
