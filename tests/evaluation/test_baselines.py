"""Baselines: what they answer, that each is measured once, and that all of them compare on the same stored rows."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet

from ptpipeline.data.rows import Row
from ptpipeline.data.snapshot import load_split, take_snapshot
from ptpipeline.data.tokens import encode_text
from ptpipeline.errors import ContextError
from ptpipeline.evaluation.baselines import Bare, Setup, measure_baselines
from ptpipeline.evaluation.evaluate import evaluate
from ptpipeline.evaluation.examples import Front, Writer, choose_examples
from ptpipeline.evaluation.key import evaluation_key, list_keys
from ptpipeline.evaluation.measurement import Sample
from ptpipeline.evaluation.results import find_flaw
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.prompts.placement import build_text_encoder, drop_bos
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.records.base import digest_of
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import ChatForm, Generation, Scoring
from ptpipeline.records.reports import Report, Scores, TextScores
from ptpipeline.serving.engine import Engine
from ptpipeline.settings import COMPUTE_TYPES
from ptpipeline.storage import FolderStore, ObjectStore
from ptpipeline.task.task import HardPrompt, Task
from ptpipeline.task.template import read_template
from tests.evaluation.probed import LABELS, artifact, embeddings, fields, opinions, tiny, writing
from tests.models.families import family, seq2seq_family
from tests.numbers import number_tokenizer
from tests.tiny import sentences, write_csv

SHOTS = HardPrompt(instruction="Say what is felt.", examples=4)

TRAIN = [Row(f"{index}", {"text": text}, label) for index, (text, label) in enumerate(sentences(40))]


def stored(folder: Path, pairs: list[tuple[str, str]], **parts: Any) -> tuple[ObjectStore, Snapshot]:
    """A store with the snapshot of these rows."""
    split = {"dev": 0.15, "test": 0.3}
    data = {
        "source": {"path": str(write_csv(folder / "rows.csv", pairs)), "format": "csv"},
        "text": "text",
        "label": "label",
        "split": split,
    }
    task = Task.model_validate(
        {
            "name": "movies",
            "base_model": "tiny",
            "data": data | parts,
            "template": "{text}\nSentiment:",
            "labels": LABELS,
            "gate": {"minimum": 0.5},
        }
    )
    store = FolderStore(folder / "store")
    return store, take_snapshot(task, store, folder)


def table(store: ObjectStore, report: Report) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = parquet.read_table(io.BytesIO(store.read(report.rows_key).body)).to_pydict()
    return columns


def sliced(folder: Path, **parts: Any) -> tuple[ObjectStore, Snapshot]:
    """The same rows with two more columns, of which `data.slices` may name some."""
    folder.mkdir()
    with (folder / "sliced.csv").open("w") as file:
        file.write("text,label,place,year\n")
        file.writelines(
            f"{text},{label},{'ab'[len(text) % 2]},{1990 + len(text) % 3}\n" for text, label in sentences(80)
        )
    return stored(folder, [], source={"path": str(folder / "sliced.csv"), "format": "csv"}, **parts)


def bare(base: FrozenBase, made: Artifact, store: ObjectStore, snapshot: Snapshot) -> Bare:
    return Bare.of(base, made.manifest, Sample.of(store, snapshot, "test"), load_split(store, snapshot, "train"))


def whole(base: FrozenBase, ids: list[int], label: str) -> float:
    """Log-likelihood of a one-token label behind all these ids, by the model itself."""
    (token,) = base.encode(LABELS[label], False)
    return float(base.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])


def test_a_report_stands_beside_baselines_with_reports_of_their_own(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(200))
    engine, made = opinions(tiny())
    saved: list[Report] = []
    report = evaluate(engine, made, snapshot, store, Setup(hard_prompt=SHOTS, save=saved.append))
    assert isinstance(report.prompt, Scores)
    assert isinstance(report.zero_shot, Scores)
    assert report.prompt.accuracy > 0.95 > 0.8 > report.zero_shot.accuracy
    assert report.evaluation_key == evaluation_key(made.digest, report.test_digest, "float32", SHOTS)
    found = {one.evaluation_key: one for one in saved}
    for kind in ("majority", "zero_shot", "hard_prompt"):
        own = found[report.baselines[kind]]
        assert (own.prompt, own.test_digest, own.rows) == (getattr(report, kind), report.test_digest, report.rows)
        columns = table(store, own)
        assert columns["id"] == table(store, report)["id"]
        assert Counter(columns["predicted"]) == Counter(own.prompt.predicted)  # type: ignore[union-attr]


def test_the_prompts_rows_say_tokens_and_labels_and_no_text(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(100))
    engine, made = opinions(tiny())
    columns = table(store, evaluate(engine, made, snapshot, store))
    rows = {row.id: row for row in load_split(store, snapshot, "test")}
    assert set(columns) == {"id", "tokens", "label", "predicted", "log_likelihood.negative", "log_likelihood.positive"}
    assert columns["tokens"] == [len(tiny().encode(f"{rows[row].text}\nSentiment:", True)) for row in columns["id"]]
    assert columns["label"] == [rows[row].label for row in columns["id"]]


def test_zero_shot_and_hard_prompt_are_the_plain_model_on_the_whole_text(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    base, (_, made) = tiny(), opinions(tiny())
    asked = bare(base, made, store, snapshot)
    front = asked.write_front(SHOTS).ids
    shown = base.tokenizer.decode(front)
    assert shown.startswith("Say what is felt.\n\n")
    assert shown.count("\nSentiment: ") == 4
    assert shown.endswith("\n\n")
    measured = measure_baselines(asked, store, Setup(hard_prompt=SHOTS))
    for kind, before in (("zero_shot", []), ("hard_prompt", front)):
        columns = table(store, measured[kind])  # type: ignore[index]
        for label in LABELS:
            expected = [whole(base, before + ids, label) for ids in asked.encoded]
            assert columns[f"log_likelihood.{label}"] == pytest.approx(expected, abs=2e-4)


def test_baselines_are_measured_once(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(80))
    base, ledger = tiny(), dict[str, Report]()

    def save(report: Report) -> None:
        ledger[report.evaluation_key] = report

    def measured(made: Artifact, setup: Setup) -> tuple[Report, int]:
        before = len(ledger)
        return evaluate(Engine(base), made, snapshot, store, setup._replace(known=ledger.get, save=save)), len(
            ledger
        ) - before

    one, other = artifact(base, embeddings(base)), artifact(base, embeddings(base, " no"))
    first, new = measured(one, Setup(hard_prompt=SHOTS))
    assert new == 3
    second, new = measured(other, Setup(hard_prompt=SHOTS))
    assert (new, second.baselines, second.zero_shot) == (0, first.baselines, first.zero_shot)
    assert measured(one, Setup(hard_prompt=HardPrompt(examples=2)))[1] == 1
    assert measured(artifact(base, embeddings(base), template="{text}:"), Setup())[1] == 2


@pytest.mark.parametrize("altered", [False, True], ids=["gone", "altered"])
def test_a_baseline_whose_rows_are_not_its_own_is_measured_again(tmp_path: Path, altered: bool) -> None:
    store, snapshot = stored(tmp_path, sentences(80))
    _, made = opinions(tiny())
    asked = bare(tiny(), made, store, snapshot)
    first = measure_baselines(asked, store, Setup())
    lost = first["zero_shot"]
    path = tmp_path / "store" / lost.rows_key
    path.write_bytes(b"other rows") if altered else path.unlink()
    again: list[Report] = []
    measure_baselines(
        asked, store, Setup(known={one.evaluation_key: one for one in first.values()}.get, save=again.append)
    )
    assert [one.evaluation_key for one in again] == [lost.evaluation_key]
    assert find_flaw(store, again[0]) is None


def test_a_baseline_that_was_measured_under_an_earlier_fingerprint_is_not_measured_again(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    base, (_, made) = tiny(), opinions(tiny())
    first = measure_baselines(bare(base, made, store, snapshot), store, Setup())
    newer = replace(base, ref=base.ref.model_copy(update={"fingerprint": "a" * 64}), earlier=base.ref)
    known = {one.evaluation_key: one for one in first.values()}
    assert measure_baselines(bare(newer, made, store, snapshot), store, Setup(known=known.get)) == first


def test_another_task_or_another_commonest_answer_is_another_baseline(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    asked = bare(tiny(), opinions(tiny())[1], store, snapshot)

    def keys(changed: Bare) -> dict[str, str]:
        return {kind: one.evaluation_key for kind, one in measure_baselines(changed, store, Setup()).items()}

    one, two = (keys(asked._replace(train=[row for row in asked.train if row.label == label])) for label in LABELS)
    assert (one["majority"] == two["majority"], one["zero_shot"] == two["zero_shot"]) == (False, True)
    renamed = keys(asked._replace(manifest=asked.manifest.model_copy(update={"task": "other"})))
    assert renamed["zero_shot"] != one["zero_shot"]


def identity(**changes: Any) -> str:
    """Of the answers of a base without a prompt, whose manifest says so much else."""
    manifest = artifact(tiny(), embeddings(tiny())).manifest.model_copy(update=changes)
    return digest_of(Bare(None, manifest, None, [], []).identity)  # type: ignore[arg-type]


def test_answers_depend_on_template_labels_generation_and_scoring() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"template": "{text}:"},
        {"labels": {"negative": " bad", "positive": " good"}},
        {"generate": Generation(max_new_tokens=4)},
        {"scoring": Scoring(calibrated=True)},
    ]
    assert len({identity(**one) for one in changes}) == len(changes)


def test_where_texts_end_counts_for_prompts_alone_that_cut_them() -> None:
    assert identity(max_input_tokens=50) == identity(placement="after_bos") == identity()
    cut: dict[str, Any] = {"too_long": "truncate_end"}
    others = [{}, {"too_long": "truncate_start"}, {"max_input_tokens": 50}, {"placement": "after_bos"}]
    assert len({identity(**cut | one) for one in others} | {identity()}) == 5


@pytest.mark.parametrize("placement", ["before_bos", "after_bos"])
def test_the_bare_base_reads_of_a_long_text_what_the_prompt_reads(tmp_path: Path, placement: Any) -> None:
    store, snapshot = stored(tmp_path, numbered())
    base = replace(family("llama"), tokenizer=number_tokenizer(begin=3))
    cut: dict[str, Any] = {"too_long": "truncate_end", "max_input_tokens": 2, "placement": placement}
    made = artifact(base, torch.zeros(2, 32), template="{text}", labels=NUMBERED, **cut)
    asked = bare(base, made, store, snapshot)
    encode = build_text_encoder(base, placement)
    read = [
        encode_text(read_template(made.manifest), row.fields, 2, "", encode, "truncate_end")
        for row in asked.sample.rows
    ]
    assert [drop_bos(ids, 3) for ids in asked.encoded] == [drop_bos(ids, 3) for ids in read]
    assert {ids[0] for ids in asked.encoded} == {3}


@pytest.mark.parametrize(
    ("answers", "needed"), [({}, 1), ({"labels": {}, "generate": Generation(max_new_tokens=8)}, 8)]
)
def test_rows_leave_room_for_the_longest_answer(tmp_path: Path, answers: dict[str, Any], needed: int) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    made = artifact(tiny(), embeddings(tiny()), **answers)
    longest = max(map(len, bare(tiny(), made, store, snapshot).encoded))
    bare(replace(tiny(), context=longest + needed), made, store, snapshot)
    with pytest.raises(ContextError, match="test rows of movies"):
        bare(replace(tiny(), context=longest + needed - 1), made, store, snapshot)


def test_rows_in_another_order_give_the_same_bits(tmp_path: Path) -> None:
    pairs = sentences(200)
    engine, made = opinions(tiny())
    found = []
    for name, rows in (("one", pairs), ("other", pairs[::-1])):
        (tmp_path / name).mkdir()
        store, snapshot = stored(tmp_path / name, rows)
        saved: list[Report] = []
        report = evaluate(engine, made, snapshot, store, Setup(hard_prompt=SHOTS, save=saved.append))
        found.append([table(store, one) for one in (report, *saved)])
    assert [row.id for row in load_split(store, snapshot, "test")] != found[0][0]["id"]
    assert found[0] == found[1]


def test_slices_stand_with_the_results_and_in_their_key(tmp_path: Path) -> None:
    engine, made = opinions(tiny())
    store, snapshot = sliced(tmp_path / "with", slices=["place", "year"])
    report = evaluate(engine, made, snapshot, store, Setup(slices=["year"]))
    columns, texts = table(store, report), {row.id: row.text for row in load_split(store, snapshot, "test")}
    assert columns["slice.year"] == [str(1990 + len(texts[row]) % 3) for row in columns["id"]]
    assert "slice.place" not in columns
    plain_store, plain = sliced(tmp_path / "without")
    assert plain.test.digest == snapshot.test.digest
    assert evaluate(engine, made, plain, plain_store).evaluation_key != report.evaluation_key


def test_another_split_is_measured_by_its_name(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(150))
    engine, made = opinions(tiny())
    saved: list[Report] = []
    report = evaluate(engine, made, snapshot, store, Setup(split="dev", save=saved.append))
    assert {one.split for one in saved} == {"dev"}
    assert (report.split, report.rows, report.test_digest) == ("dev", snapshot.dev.rows, snapshot.dev.digest)
    assert report.evaluation_key == evaluation_key(made.digest, snapshot.dev.digest, "float32")


def digest_front(asked: Bare, front: list[int], **more: Any) -> str:
    """Of a hard prompt of these token ids: `more` is what only some bases have."""
    kind = {"baseline": "hard_prompt", "task": asked.manifest.task, "front": front, "base": asked.base.ref.fingerprint}
    return digest_of(asked.identity | kind | more)


def test_calibrated_prompts_stand_beside_calibrated_baselines(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    base = tiny()
    made = artifact(base, embeddings(base), scoring=Scoring(calibrated=True))
    asked = bare(base, made, store, snapshot)
    front = asked.write_front(SHOTS).ids
    report = measure_baselines(asked, store, Setup(hard_prompt=SHOTS))["hard_prompt"]
    assert (base.bos, report.digest) == (None, digest_front(asked, front))
    columns = table(store, report)
    free = torch.tensor(
        [
            [whole(base, front + base.encode(f"{text}\nSentiment:", True), label) for label in LABELS]
            for text in ("N/A", "[MASK]", "")
        ]
    )
    prior = free.softmax(-1).mean(0).log()
    ids = asked.encoded[0]
    expected = [whole(base, front + ids, label) - float(prior[index]) for index, label in enumerate(LABELS)]
    assert [columns[f"log_likelihood.{label}"][0] for label in LABELS] == pytest.approx(expected, abs=2e-4)


def test_generated_texts_have_a_hard_prompt_too(tmp_path: Path) -> None:
    pairs = sentences(60)
    store, snapshot = stored(tmp_path, pairs)
    engine, made = writing(tiny())
    kept: list[dict[str, str]] = []
    report = evaluate(engine, made, snapshot, store, Setup(hard_prompt=HardPrompt(examples=2), keep=kept.append))
    assert set(kept[0].values()) == {"negative", "positive"}
    asked = bare(tiny(), made, store, snapshot)
    assert tiny().tokenizer.decode(asked.write_front(HardPrompt(examples=2)).ids).count("\nSentiment: ") == 2
    assert isinstance(report.hard_prompt, TextScores)
    assert isinstance(report.majority, TextScores)
    assert report.majority.most_frequent_share == 1
    columns = table(store, report)
    assert set(columns) == {"id", "tokens", "exact_match", "token_f1", "rouge_l", "bleu", "chrf"}
    assert list(kept[0]) == columns["id"]


def test_an_empty_hard_prompt_is_zero_shot_and_left_out(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    engine, made = opinions(tiny())
    report = evaluate(engine, made, snapshot, store, Setup(hard_prompt=HardPrompt(examples=0)))
    assert report.hard_prompt is None
    assert set(report.baselines) == {"majority", "zero_shot"}
    assert report.evaluation_key == evaluation_key(made.digest, report.test_digest, "float32")


def test_only_as_many_examples_as_fit_are_written_out(caplog: pytest.LogCaptureFixture) -> None:
    base, (_, made) = tiny(), opinions(tiny())
    train = [Row(f"{index}", {"text": text}, label) for index, (text, label) in enumerate(sentences(40))]
    writer = Writer(base, made.manifest)
    four = writer.write(HardPrompt(examples=4), train, 1000).ids
    assert writer.write(HardPrompt(examples=4), train, len(four)).ids == four
    three = writer.write(HardPrompt(examples=4), train, len(four) - 1).ids
    assert three == four[: len(three)]
    assert base.tokenizer.decode(three).count("Sentiment:") == 3
    assert "3 of 4 examples" in caplog.text
    assert writer.write(HardPrompt(examples=4), train, 2).ids == []
    assert writer.write(SHOTS, train, 2).ids == []
    assert len(writer.write(HardPrompt(instruction="Say.", examples=0), train, 50).ids) > 1


def test_a_text_without_content_needs_room_behind_the_hard_prompt_too() -> None:
    base, manifest = tiny(), artifact(tiny(), embeddings(tiny()), scoring=Scoring(calibrated=True)).manifest
    train = [Row(f"{index}", {"text": text}, label) for index, (text, label) in enumerate(sentences(40))]
    asked = Bare(base, manifest, None, [base.encode("a\nSentiment:", True)], train)  # type: ignore[arg-type]
    labels = asked._find_labels(read_template(manifest))
    longest = max(map(len, labels.content_free))
    assert longest > len(asked.encoded[0])
    four = asked.write_front(HardPrompt(examples=4)).ids
    needed = len(four) + longest + labels.longest
    fits, falls_short = (
        asked._replace(base=replace(base, context=context)).write_front(HardPrompt(examples=4)).ids
        for context in (needed, needed - 1)
    )
    assert fits == four
    assert len(falls_short) < len(four)


def test_a_generated_answer_needs_room_behind_the_hard_prompt_too() -> None:
    base, answers = tiny(), {"labels": {}, "generate": Generation(max_new_tokens=8)}
    train = [Row(f"{index}", {"text": text}, label) for index, (text, label) in enumerate(sentences(40))]
    ids = base.encode("a\nSentiment:", True)
    asked = Bare(base, artifact(base, embeddings(base), **answers).manifest, None, [ids], train)  # type: ignore[arg-type]
    four = asked.write_front(HardPrompt(examples=4)).ids
    needed = len(four) + len(ids) + 8
    fits, falls_short = (
        asked._replace(base=replace(base, context=context)).write_front(HardPrompt(examples=4)).ids
        for context in (needed, needed - 1)
    )
    assert fits == four
    assert len(falls_short) < len(four)


def test_an_examples_answer_counts_as_a_part_of_its_length() -> None:
    rows = [Row(f"{index}", {"text": "same text"}, "a" * index) for index in range(20)]
    assert {len(row.label) for row in choose_examples(rows, 20, False)} == set(range(10))


def test_no_example_has_a_label_that_the_prompt_does_not_know() -> None:
    base, manifest = tiny(), artifact(tiny(), embeddings(tiny())).manifest
    unknown = [Row(f"other {index}", {"text": "a"}, "unheard of") for index in range(5)]
    fronts = [Writer(base, manifest).write(HardPrompt(examples=4), rows, 1000) for rows in (TRAIN, [*unknown, *TRAIN])]
    assert fronts[0] == fronts[1]


def test_examples_are_balanced_short_and_the_same_in_any_order() -> None:
    train = [
        Row(digest_of(index)[:16], {"text": "word " * (index % 10 + 1)}, "ab"[index % 5 == 0]) for index in range(100)
    ]
    found = choose_examples(train, 6, True)
    assert Counter(row.label for row in found) == {"a": 3, "b": 3}
    assert choose_examples(train[::-1], 6, True) == found
    assert choose_examples(train, 2, True) == [row for row in found if row in choose_examples(train, 2, True)]
    assert max(len(row.text.split()) for row in found if row.label == "a") <= 5
    assert len(choose_examples(train[:3], 16, True)) == 2


NUMBERED = {"negative": " 41", "positive": " 42"}


def numbered() -> list[tuple[str, str]]:
    """Texts of two numbers, as the random models read them."""
    return [(f"{5 + index % 30} {7 + index // 30}", sorted(LABELS)[index % 2]) for index in range(60)]


def test_bos_stands_before_the_hard_prompt_alone(tmp_path: Path) -> None:
    base = replace(family("llama"), tokenizer=number_tokenizer(begin=3))
    made = artifact(base, torch.zeros(2, 32), template="{text}", labels=NUMBERED, scoring=Scoring(calibrated=True))
    store, snapshot = stored(tmp_path, numbered())
    asked = bare(base, made, store, snapshot)
    front = asked.write_front(HardPrompt(examples=2)).ids
    assert (front[0], front.count(3), asked.encoded[0][0]) == (3, 1, 3)
    measured = measure_baselines(asked, store, Setup(hard_prompt=HardPrompt(examples=2)))
    assert measured["hard_prompt"].digest == digest_front(asked, front, bos="once")
    columns = table(store, measured["zero_shot"])
    free = (
        base.model(torch.tensor([[3]])).logits[0, -1].log_softmax(-1)[[41, 42]].log_softmax(-1)
    )  # all three have BOS alone
    for place, ids in enumerate(asked.encoded[:5]):
        expected = base.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[[41, 42]] - free
        assert [columns[f"log_likelihood.{name}"][place] for name in sorted(LABELS)] == pytest.approx(
            expected.tolist(), abs=1e-4
        )
    shown = (
        asked._replace(manifest=made.manifest.model_copy(update={"scoring": Scoring()})).measure(Front(front)).columns
    )
    assert asked.measure(Front(front)).columns == shown  # behind the front no text without content has a token
    for place, ids in enumerate(asked.encoded[:5]):
        expected = base.model(torch.tensor([front + ids[1:]])).logits[0, -1].log_softmax(-1)[[41, 42]]
        assert [shown[f"log_likelihood.{name}"][place] for name in sorted(LABELS)] == pytest.approx(
            expected.tolist(), abs=1e-4
        )


def test_texts_without_content_have_no_bos_behind_the_hard_prompt(tmp_path: Path) -> None:
    base = replace(family("llama"), tokenizer=number_tokenizer(begin=3))
    made = artifact(base, torch.zeros(2, 32), template="5 {text}", labels=NUMBERED, scoring=Scoring(calibrated=True))
    store, snapshot = stored(tmp_path, numbered())
    asked = bare(base, made, store, snapshot)
    front = asked.write_front(HardPrompt(examples=2)).ids
    calibrated = asked.measure(Front(front)).columns
    plain = (
        asked._replace(manifest=made.manifest.model_copy(update={"scoring": Scoring()})).measure(Front(front)).columns
    )
    prior = base.model(torch.tensor([[*front, 5]])).logits[0, -1].log_softmax(-1)[[41, 42]].log_softmax(-1)
    for name, less in zip(sorted(LABELS), prior.tolist(), strict=True):
        key = f"log_likelihood.{name}"
        assert calibrated[key] == pytest.approx([value - less for value in plain[key]], abs=1e-4)


def test_an_encoder_decoder_reads_the_hard_prompt_as_text(tmp_path: Path) -> None:
    base = replace(seq2seq_family("t5 relu tied"), tokenizer=number_tokenizer(end=1))
    made = artifact(base, torch.zeros(2, 32), template="{text}", labels=NUMBERED)
    store, snapshot = stored(tmp_path, numbered())
    asked = bare(base, made, store, snapshot)
    columns = table(store, measure_baselines(asked, store, Setup(hard_prompt=HardPrompt(examples=2)))["hard_prompt"])
    front = asked.write_front(HardPrompt(examples=2)).ids
    assert len(front) == 6
    assert 1 not in front
    for place, ids in enumerate(asked.encoded[:5]):
        logits = (
            base.model(input_ids=torch.tensor([front + ids]), decoder_input_ids=torch.tensor([[0]]))
            .logits[0, 0]
            .log_softmax(-1)
        )
        assert [columns[f"log_likelihood.{name}"][place] for name in sorted(LABELS)] == pytest.approx(
            [float(logits[41]), float(logits[42])], abs=1e-4
        )


def test_the_key_says_what_stands_beside() -> None:
    plain = evaluation_key("d", "t", "torch.float32")
    assert plain == evaluation_key("d", "t", "float32") == evaluation_key("d", "t", "float32", HardPrompt(examples=0))
    others = {evaluation_key("d", "t", "float32", HardPrompt(examples=count)) for count in (1, 2, 4)}
    assert len(others | {plain}) == 4


def test_a_measurement_counts_under_its_compute_type_or_under_any() -> None:
    assert list_keys("d", "t", "float32", SHOTS) == [evaluation_key("d", "t", "float32", SHOTS)]
    assert list_keys("d", "t", None, SHOTS) == [evaluation_key("d", "t", name, SHOTS) for name in COMPUTE_TYPES]


def test_a_chat_and_a_text_of_the_same_letters_are_measured_apart() -> None:
    manifest = artifact(tiny(), embeddings(tiny())).manifest
    parts = ["<s>", "{text}", "</s>"]
    text = manifest.model_copy(update={"template": "<s>{text}</s>"})
    chat = text.model_copy(update={"chat": ChatForm(template="0" * 64, parts=parts)})
    text_identity, chat_identity = (Bare(None, one, None, [], []).identity for one in (text, chat))  # type: ignore[arg-type]
    assert text_identity != chat_identity


def test_an_ensemble_is_measured_with_its_members(tmp_path: Path) -> None:
    store, snapshot = stored(tmp_path, sentences(60))
    members = [artifact(tiny(), embeddings(tiny(), word)) for word in (" yes", " yes good")]
    for member in members:
        write_artifact(store, member)
    made = pack_ensemble(members, "average", fields(tiny()) | {"method": "ensemble"})
    report = evaluate(Engine(tiny()), made, snapshot, store)
    assert (report.digest, report.rows) == (made.digest, snapshot.test.rows)
