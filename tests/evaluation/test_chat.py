"""The hard prompt of a chat: examples are turns before the row's own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ptpipeline.data.snapshot import load_split
from ptpipeline.evaluation.baselines import Bare, Setup, measure_baselines
from ptpipeline.evaluation.examples import Writer, choose_examples
from ptpipeline.evaluation.measurement import Sample
from ptpipeline.models.chat import ChatTemplate, write_chat
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.task.task import HardPrompt
from tests.evaluation.probed import LABELS, artifact, embeddings, tiny
from tests.evaluation.test_baselines import TRAIN, stored, table, whole
from tests.tiny import sentences

MESSAGES = [("system", "Name the mood."), ("user", "{text}?")]
CHATML = (
    "{% for message in messages %}{{ '[' + message.role + ':' + message.content + ']' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant:' }}{% endif %}"
)


def chatting(text: str = CHATML, messages: Sequence[tuple[str, str]] = MESSAGES) -> tuple[FrozenBase, PromptManifest]:
    """A base with a chat template, and the manifest of a task whose template is a chat."""
    base = replace(tiny(), chat=ChatTemplate(text, ()))
    form = write_chat("b", base.chat, messages)
    return base, artifact(base, embeddings(base)).manifest.model_copy(update={"chat": form})


def written(base: FrozenBase, ids: list[int]) -> str:
    """The text of the token ids, which the tiny tokenizer writes with blanks of its own."""
    return "".join(base.tokenizer.decode(ids).split())


def test_examples_of_a_chat_are_turns_of_one_chat() -> None:
    base, manifest = chatting()
    front = Writer(base, manifest, MESSAGES).write(HardPrompt(instruction="Be brief.", examples=2), TRAIN, 1000)
    assert front.turn is not None
    first, second = choose_examples(TRAIN, 2, True)
    expected = "[system:Be brief.\n\nName the mood.]" + "".join(
        f"[user:{row.text}?][assistant:{LABELS[row.label]}" + "]" * (row is first) for row in (first, second)
    )
    plain = base.encode(expected, False)
    assert written(base, front.ids) == written(base, plain)
    assert front.turn.render({"text": "A film"}, "row") == "][user:A film?][assistant:"
    assert front.turn.names == ["text"]


def test_as_many_turns_as_fit_are_written(caplog: pytest.LogCaptureFixture) -> None:
    base, manifest = chatting()
    writer = Writer(base, manifest, MESSAGES)
    four = writer.write(HardPrompt(examples=4), TRAIN, 1000)
    three = writer.write(HardPrompt(examples=4), TRAIN, len(four.ids) - 1)
    assert written(base, four.ids).startswith(written(base, three.ids))
    assert (written(base, three.ids).count("[user:"), three.turn) == (3, four.turn)
    assert writer.write(HardPrompt(examples=4), TRAIN, len(four.ids)) == four
    assert "3 of 4 examples" in caplog.text


NO_SECOND = "{% if messages | length > 2 %}{{ raise_exception('one turn alone') }}{% endif %}" + CHATML


def test_chats_that_cannot_be_one_stand_one_behind_the_other_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    base, manifest = chatting(NO_SECOND)
    front = Writer(base, manifest, MESSAGES).write(HardPrompt(examples=2), TRAIN, 1000)
    assert (front.turn, written(base, front.ids).count("[system:")) == (None, 2)
    assert "cannot be written as turns of one (base model" in caplog.text
    other = Writer(base, manifest, [("user", "{text}")]).write(HardPrompt(examples=2), TRAIN, 1000)
    assert other == front


ALONE = [("user", "{text}?")]


def test_the_instruction_of_a_chat_without_a_system_begins_its_first_message() -> None:
    base, manifest = chatting(CHATML, ALONE)
    front = Writer(base, manifest, ALONE).write(HardPrompt(instruction="Be brief.", examples=1), TRAIN, 1000)
    (row,) = choose_examples(TRAIN, 1, True)
    assert front.turn is not None
    assert written(base, front.ids) == written(
        base, base.encode(f"[user:Be brief.\n\n{row.text}?][assistant:{LABELS[row.label]}", False)
    )


def test_an_instruction_without_examples_is_no_chat() -> None:
    base, manifest = chatting(CHATML, ALONE)
    front = Writer(base, manifest, ALONE).write(HardPrompt(instruction="Be brief.", examples=0), TRAIN, 1000)
    assert (front.turn, written(base, front.ids)) == (None, written(base, base.encode("Be brief.\n\n", False)))


def test_a_chat_template_that_changed_since_writes_no_turns(caplog: pytest.LogCaptureFixture) -> None:
    base, manifest = chatting()
    changed = replace(base, chat=ChatTemplate(CHATML.replace("[assistant:", "[model:"), ()))
    front = Writer(changed, manifest, MESSAGES).write(HardPrompt(examples=2), TRAIN, 1000)
    assert (front.turn, "cannot be written as turns of one" in caplog.text) == (None, True)


LATER = CHATML.replace("{{ '['", "{{ ('(' if loop.index > 3 else '[')")


def test_rows_that_are_asked_otherwise_behind_the_same_text_are_another_baseline(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    fronts, keys = [], []
    for text in (CHATML, LATER):
        base, manifest = chatting(text)
        asked = Bare.of(base, manifest, Sample.of(store, snapshot, "test"), load_split(store, snapshot, "train"))
        setup = Setup(hard_prompt=HardPrompt(examples=1), messages=MESSAGES)
        fronts.append(asked.write_front(HardPrompt(examples=1), MESSAGES))
        keys.append(measure_baselines(asked, store, setup)["hard_prompt"].evaluation_key)
    assert (fronts[0].ids == fronts[1].ids, fronts[0].turn == fronts[1].turn) == (True, False)
    assert keys[0] != keys[1]


def test_rows_of_a_chat_are_measured_as_its_last_turn(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    base, manifest = chatting()
    asked = Bare.of(base, manifest, Sample.of(store, snapshot, "test"), load_split(store, snapshot, "train"))
    setup = Setup(hard_prompt=HardPrompt(examples=2), messages=MESSAGES)
    columns = table(store, measure_baselines(asked, store, setup)["hard_prompt"])
    front = asked.write_front(HardPrompt(examples=2), MESSAGES)
    row = asked.sample.rows[0]
    turn = base.encode(f"][user:{row.text}?][assistant:", True)
    ids = front.ids + (turn[1:] if base.bos is not None and turn[0] == base.bos else turn)
    for label in LABELS:
        assert columns[f"log_likelihood.{label}"][0] == pytest.approx(whole(base, ids, label), abs=2e-4)
