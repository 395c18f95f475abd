"""What `ptp tasks` finds without data: one sentence each, with file and line."""

import json
from pathlib import Path

import pytest

from flows.on_demand.inspection import inspect_folder
from tests.task.test_folder import lock
from tests.tiny import tiny_project


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return tiny_project(tmp_path, ("tiny-a", "tiny-b"))


def edit(tasks: Path, old: str, new: str) -> None:
    path = tasks / "tiny-a.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_sound_folder_has_no_findings(tasks: Path) -> None:
    lock(tasks)
    found = inspect_folder(tasks)
    assert ([task.name for task in found.tasks], found.problems, found.advice) == (["tiny-a", "tiny-b"], [], [])


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ("base_model: tiny", "base_model: huge", 2, "base_model: no base model 'huge' in "),
        ('" negative"', '" positive thing"', 9, "begins with all tokens of ' positive' (labels.positive)"),
        ('init: {text: " yes"}', "init: {file: start.npy}", 10, "tune.init: no file start.npy"),
        (
            'init: {text: " yes"}',
            "method: multitask, shared: common",
            10,
            "tune.shared: {tasks}/shared_prompts.yaml: no such file",
        ),
    ],
)
def test_what_would_stop_a_task_is_told_with_its_line(
    tasks: Path, old: str, new: str, line: int, sentence: str
) -> None:
    edit(tasks, old, new)
    [problem] = inspect_folder(tasks).problems
    assert problem.startswith(f"{tasks}/tiny-a.yaml:{line}: ")
    assert sentence.format(tasks=tasks) in problem


def test_a_folder_without_base_models_is_told(tasks: Path) -> None:
    (tasks / "base_models.yaml").unlink()
    problems = inspect_folder(tasks).problems
    assert [problem.split(": ")[2] for problem in problems] == [f"{tasks}/base_models.yaml"] * 2
    assert "declare each base model as" in problems[0]


def test_a_base_without_its_folder_is_told(tasks: Path) -> None:
    (tasks / "base_models.yaml").write_text("tiny: {path: nowhere}")
    problem = inspect_folder(tasks).problems[0]
    assert problem.startswith(f"{tasks}/tiny-a.yaml:2: base_model: tiny of {tasks}/base_models.yaml is the folder")
    assert "holds no config.json" in problem


def test_advice_names_file_and_line(tasks: Path) -> None:
    edit(tasks, "warmup_steps: 3", "warmup_steps: 30")
    [advice] = inspect_folder(tasks).advice
    assert advice.startswith(f"{tasks}/tiny-a.yaml:10: tune.steps: all 10 steps lie within the warm-up of 30")


def test_a_control_token_in_the_words_of_a_label_is_text(tasks: Path) -> None:
    """As training reads it: so its tokens begin with those of its first character."""
    edit(tasks, '{negative: " negative", positive: " positive"}', '{negative: "</s>", positive: "<"}')
    [problem] = inspect_folder(tasks).problems
    assert "'</s>' begins with all tokens of '<' (labels.positive)" in problem


CHAT = "template: {chat: [{role: user, content: '{text}'}]}"
CONFIG = "base/tokenizer_config.json"


def test_a_chat_on_a_base_without_a_chat_template_is_told(tasks: Path) -> None:
    edit(tasks, 'template: "{text}\\nSentiment:"', CHAT)
    [problem] = inspect_folder(tasks).problems
    assert problem.startswith(f"{tasks}/tiny-a.yaml:8: template: base model tiny has no chat template (")


@pytest.mark.parametrize(
    ("file", "body"),
    [
        ("base/chat_template.jinja", "{{ messages[0].content }}"),
        (CONFIG, json.dumps({"chat_template": "{{ messages[0].content }}"})),
        (CONFIG, json.dumps({"chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}]})),
    ],
)
def test_a_chat_on_a_base_with_a_chat_template_is_sound(tasks: Path, file: str, body: str) -> None:
    edit(tasks, 'template: "{text}\\nSentiment:"', CHAT)
    (tasks.parent / file).write_text(body)
    assert inspect_folder(tasks).problems == []


@pytest.mark.parametrize(
    ("body", "told"), [("{", "is not valid JSON"), ('{"chat_template": " "}', "has no chat template")]
)
def test_a_chat_template_that_is_none_is_told(tasks: Path, body: str, told: str) -> None:
    edit(tasks, 'template: "{text}\\nSentiment:"', CHAT)
    (tasks.parent / CONFIG).write_text(body)
    [problem] = inspect_folder(tasks).problems
    assert told in problem
