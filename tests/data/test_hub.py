"""Rows of data sets on a hub."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptpipeline.data import hub as hub_rows
from ptpipeline.data.snapshot import take_snapshot
from ptpipeline.data.sources import describe_key, read_rows, source_key
from ptpipeline.data.table import Column, Places, Table
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError, ServiceUnavailable, SettingsError
from ptpipeline.storage import FolderStore
from ptpipeline.task.task import Task
from tests.data.declared import declared
from tests.http_server import Quiet, serve
from tests.hub_server import COMMIT, Hub
from tests.tiny import sentences

PLACE = "datasets/lab/reviews"
HEAD = "text,label\n"


def task(**source: Any) -> Task:
    own = {"path": None, "format": None, "hub": "lab/reviews", "revision": COMMIT, "split": "train"}
    return declared(source=own | source)


def parquet(**columns: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
- config_name: other
  data_files:
  - {split: train, path: other/*.parquet}
dataset_info:
- config_name: main
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {"0": bad, "1": good}}}
---
# Reviews
"""


@pytest.fixture
def reviews(hub: Hub) -> Hub:
    files = {
        "README.md": CARD,
        "data/train-0.parquet": parquet(text=["a", "b"], label=[0, 1], id=[1, 2]),
        "data/train-1.parquet": parquet(text=["c"], label=[1], more=["x"]),
        "data/test-0.parquet": parquet(text=["d"], label=[0]),
        "other/rows.parquet": parquet(text=["e"], label=["good"]),
    }
    hub.put(PLACE, **files)
    return hub


def test_the_files_of_a_split_are_read_with_the_names_of_classes(reviews: Hub, tmp_path: Path) -> None:
    rows = read_rows(task(), tmp_path)
    assert (rows.fields["text"], rows.labels) == (["a", "b", "c"], ["bad", "good", "good"])
    assert read_rows(task(split="test"), tmp_path).fields["text"] == ["d"]
    assert read_rows(task(config="other"), tmp_path).labels == ["good"]
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_a_message_asks_for_is_read(reviews: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"do not tell the rows of config all: .*; set data\.source\.config, or download"
    ):
        read_rows(task(config="all"), tmp_path)
    assert read_rows(task(config="other"), tmp_path).fields["text"] == ["e"]


def test_only_the_files_of_the_split_are_fetched(reviews: Hub, tmp_path: Path) -> None:
    read_rows(task(split="test"), tmp_path)
    fetched = {line.rpartition("/resolve/")[2] for line in reviews.asked if line.startswith("GET datasets")}
    assert fetched == {f"{COMMIT}/README.md", f"{COMMIT}/data/test-0.parquet"}


def test_the_key_is_the_commit_and_asks_nothing(reviews: Hub, tmp_path: Path) -> None:
    key = source_key(task(), tmp_path)
    assert reviews.asked == []
    assert source_key(task(revision="b" * 40), tmp_path) != key
    assert source_key(task(config="other"), tmp_path) != key
    assert source_key(task(split="test"), tmp_path) != key
    assert describe_key(task()) == "the commit"


def test_a_data_set_without_a_card_is_read_by_the_names_of_its_files(hub: Hub, tmp_path: Path) -> None:
    hub.put(PLACE, **{"train.csv.gz": gzip.compress(f"{HEAD}NA,good\n".encode()), "test.csv": f"{HEAD}b,bad\n"})
    assert read_rows(task(), tmp_path).fields["text"] == ["NA"]
    assert read_rows(task(split="test"), tmp_path).fields["text"] == ["b"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("train.tsv", "text\tlabel\na, b\tgood\n"),
        ("train.jsonl", '{"text": "a, b", "label": "good"}\n'),
        ("train.csv", 'text,label\n"a, b",good\n'),
    ],
)
def test_text_formats_are_read(hub: Hub, tmp_path: Path, name: str, body: str) -> None:
    hub.put(PLACE, **{name: body})
    assert read_rows(task(), tmp_path).fields["text"] == ["a, b"]


@pytest.mark.parametrize(
    ("body", "advice", "settings"),
    [
        ("text;label\na;good\n", 'set data.source.delimiter: ";"', {"delimiter": ";"}),
        ("a,good\nb,bad\n", "name its columns in data.source.columns", {"columns": ["text", "label"]}),
    ],
)
def test_what_a_message_says_to_set_is_set_for_a_hub_too(
    hub: Hub, tmp_path: Path, body: str, advice: str, settings: dict[str, Any]
) -> None:
    hub.put(PLACE, **{"train.csv": body})
    with pytest.raises(DataError, match=re.escape(advice)):
        read_rows(task(), tmp_path)
    assert read_rows(task(**settings), tmp_path).fields["text"][0] == "a"


def test_a_file_of_another_format_than_its_name_says_is_to_be_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.put(PLACE, **{"train.csv": '{"text": "a", "label": "good"}\n'})
    with pytest.raises(DataError, match=r"download the file, name its path, and set data\.source\.format: jsonl"):
        read_rows(task(), tmp_path)


@pytest.mark.parametrize(
    ("files", "held"), [(["train.zip", "README.md"], "holds train.zip, README.md"), ([], "holds no file")]
)
def test_a_data_set_without_a_file_that_is_read_is_told_by_what_it_holds(
    hub: Hub, tmp_path: Path, files: list[str], held: str
) -> None:
    hub.put(PLACE, **dict.fromkeys(files, "x"))
    with pytest.raises(DataError, match=f"{held}, and nothing in csv, jsonl, parquet; download its rows"):
        read_rows(task(), tmp_path)


def test_the_separator_of_a_card_counts_and_other_options_are_refused(hub: Hub, tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  {}\n---\n"
    hub.put(PLACE, **{"README.md": card.format('sep: ";"'), "train.csv": "text;label\na;bad\n"})
    assert read_rows(task(), tmp_path).fields["text"] == ["a"]
    hub.put(PLACE, **{"README.md": card.format("skiprows: 3"), "train.csv": f"{HEAD}a,bad\n"})
    with pytest.raises(DataError, match="its card reads the files with skiprows, which is not supported"):
        read_rows(task(), tmp_path)


def test_the_splits_of_a_data_set_are_those_of_a_task(reviews: Hub, tmp_path: Path) -> None:
    rows = [(text, {"positive": 1, "negative": 0}[label]) for text, label in sentences(90)]
    parts = {"data/train-0.parquet": rows[:60], "data/test-0.parquet": rows[60:]}
    bodies = {path: parquet(text=[t for t, _ in part], label=[n for _, n in part]) for path, part in parts.items()}
    reviews.put(PLACE, **{"README.md": CARD, **bodies})
    whole = task().model_dump(mode="json", exclude_unset=True)
    source = {split: {"hub": "lab/reviews", "revision": COMMIT, "split": split} for split in ("train", "test")}
    given = Task.model_validate(whole | {"data": whole["data"] | {"source": source, "split": {}}})
    snapshot = take_snapshot(given, FolderStore(tmp_path / "store"), tmp_path / "home")
    assert (snapshot.test.rows, snapshot.source) == (
        30,
        f"hub:lab/reviews@{COMMIT[:12]}/data/train-0.parquet, hub:lab/reviews@{COMMIT[:12]}/data/test-0.parquet",
    )


def test_a_row_is_told_by_its_file(reviews: Hub, tmp_path: Path) -> None:
    reviews.put(PLACE, **{"train.csv": f"{HEAD}a,bad\nb,wrong\n"})
    with pytest.raises(
        DataError, match=r"hub:lab/reviews@c0ffeec0ffee/train\.csv: check unknown_label found 1: line 3"
    ):
        check_rows(task(), read_rows(task(), tmp_path))


# ---------------------------------------------------------------- no code is run


def test_no_code_of_a_repository_is_run(hub: Hub, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    script = f"open({str(mark)!r}, 'w')\nimport datasets\n"
    pickled = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    scripts = {"reviews.py": script, "files.py": script, "lab/reviews.py": script, "data/train.pkl": pickled}
    hub.put(PLACE, **scripts)
    with pytest.raises(DataError, match="nothing in csv, jsonl, parquet"):
        read_rows(task(), tmp_path / "home")
    hub.put(PLACE, **scripts, **{"train.csv": f"{HEAD}a,bad\n"})
    assert read_rows(task(), tmp_path / "home").fields["text"] == ["a"]
    assert not any("py" in line.rpartition(".")[2] for line in hub.asked)
    assert not mark.exists()


@pytest.mark.parametrize("path", ["../train.csv", "a/../../train.csv", "a//train.csv", "a\\train.csv"])
def test_a_file_never_leads_out_of_its_folder(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.put(PLACE, **{path: f"{HEAD}a,bad\n"})
    with pytest.raises(DataError, match="holds a file that no file can be called"):
        read_rows(task(), tmp_path / "home")


@pytest.mark.parametrize(
    ("name", "body"), [("train.csv", "text,label\na,1\nb,3\n"), ("train.jsonl", '{"text": "a", "label": "1"}\n')]
)
def test_a_text_that_is_the_name_of_a_class_is_no_number_of_one(hub: Hub, tmp_path: Path, name: str, body: str) -> None:
    card = (
        "dataset_info:\n  features:\n  - {name: text, dtype: string}\n  - name: label\n    dtype:\n      class_label:\n"
    )
    names = "        names: {'0': '1', '1': '2', '2': '3'}\n"
    hub.put(PLACE, **{"README.md": f"---\n{card}{names}---\n", name: body})
    labels = read_rows(task().model_copy(update={"labels": {"1": "1", "3": "3"}}), tmp_path).labels
    assert labels == ["1", "3"][: len(labels)]


def test_the_numbers_of_classes_become_names_and_what_has_no_class_is_missing() -> None:
    table = Table(["label"], {"label": Column(["1", "-1", None], ("integers",))}, Places())
    named = hub_rows._name_classes(table, {"label": ["bad", "good"], "other": ["a"]})
    assert named.columns == {"label": Column(["good", None, None], ("text",), {"bad": "0", "good": "1"})}


@pytest.mark.parametrize(("kind", "name"), [("integers", "good"), ("text", "1")])
def test_what_a_class_is_called_counts_before_its_number_for_texts_alone(kind: str, name: str) -> None:
    table = Table(["label"], {"label": Column(["1"], (kind,))}, Places())
    assert hub_rows._name_classes(table, {"label": ["1", "good"]}).columns["label"].cells == [name]


def test_classes_that_a_file_names_itself_are_not_named_again(hub: Hub, tmp_path: Path) -> None:
    names = {str(number): str(number + 1) for number in range(3)}
    stated = {"info": {"features": {"label": {"names": list(names.values()), "_type": "ClassLabel"}}}}
    rows = pa.table({"text": ["a", "b"], "label": [0, 1]})
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({b"huggingface": json.dumps(stated).encode()}), buffer)
    dtype = json.dumps({"class_label": {"names": names}})
    features = f"  - {{name: text, dtype: string}}\n  - {{name: label, dtype: {dtype}}}\n"
    card = f"---\ndataset_info:\n  features:\n{features}---\n"
    hub.put(PLACE, **{"README.md": card, "train.parquet": buffer.getvalue()})
    assert read_rows(task(), tmp_path).labels == ["1", "2"]


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:9/x.csv", "zip://x.csv::a.zip", "zip::a.zip", "/tmp/*.csv", "../*.csv", "~/x.csv"]
)
@pytest.mark.parametrize("field", ["data_files: PLACE", "data_files: [{split: train, path: PLACE}]", "data_dir: PLACE"])
def test_a_card_that_names_files_elsewhere_is_refused_before_they_are_asked_for(
    hub: Hub, tmp_path: Path, field: str, place: str
) -> None:
    card = f"---\nconfigs:\n- config_name: default\n  {field.replace('PLACE', json.dumps(place))}\n---\n"
    hub.put(PLACE, **{"README.md": card, "train.csv": f"{HEAD}a,bad\n"})
    with pytest.raises(DataError, match="its card names files elsewhere; download the file and name its path"):
        read_rows(task(), tmp_path)


@pytest.mark.parametrize("readme", ["---\nlicense: mit\n---\n", None])
def test_a_second_card_names_no_files_elsewhere_either(hub: Hub, tmp_path: Path, readme: str | None) -> None:
    """`datasets` reads .huggingface.yaml in place of what the README says, and would ask whatever address it names."""
    asked: list[str] = []

    class Inner(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            self.answer(200, f"{HEAD}a,bad\n".encode(), "text/csv")

        do_HEAD = do_GET  # noqa: N815

    with serve(Inner) as address:
        card = f"configs:\n- config_name: default\n  data_files: {address}/x.csv\n"
        files = {".huggingface.yaml": card, "train.csv": f"{HEAD}a,bad\n"} | ({"README.md": readme} if readme else {})
        hub.put(PLACE, **files)
        with pytest.raises(DataError, match="its card names files elsewhere"):
            read_rows(task(), tmp_path)
    assert asked == []


def test_files_and_cards_that_are_too_large_are_not_fetched(
    reviews: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_rows, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"data/train-0\.parquet: \d+ bytes; a source may have at most 10 bytes"):
        read_rows(task(), tmp_path)
    monkeypatch.setattr(hub_rows, "MAX_CARD", 10)
    with pytest.raises(DataError, match=rf"its README\.md has {len(CARD)} bytes, at most 10 are read"):
        read_rows(task(), tmp_path)
    assert [line for line in reviews.asked if line.startswith("GET datasets") and "parquet" in line] == []


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize("lines", [f"{BOMB}configs: [{{config_name: default, data_files: *a8}}]\n", MERGED])
@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
def test_a_card_that_unfolds_without_end_is_refused_before_it_does(
    hub: Hub, tmp_path: Path, file: str, lines: str
) -> None:
    """Half a kilobyte of aliases stands for a hundred million files, or pairs."""
    hub.put(PLACE, **{file: f"---\n{lines}---\n" if file == "README.md" else lines, "train.csv": f"{HEAD}a,bad\n"})
    started = time.process_time()
    with pytest.raises(DataError, match="repeats values by aliases"):
        read_rows(task(), tmp_path)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("name", ["x\ud800.csv", f"{'x' * 300}.csv"])
def test_a_name_that_no_file_can_have_is_one_sentence(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.put(PLACE, **{name: f"{HEAD}a,bad\n"})
    with pytest.raises(DataError) as raised:
        read_rows(task(), tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "card", ["---\n: [\n---\n", "---\nconfigs: 7\n---\n", "---\nconfigs:\n- !!python/object:os.x {}\n---\n"]
)
def test_a_broken_card_is_told(hub: Hub, tmp_path: Path, card: str) -> None:
    hub.put(PLACE, **{"README.md": card, "rows.csv": f"{HEAD}a,bad\n"})
    with pytest.raises(DataError, match="do not tell the rows of config default") as raised:
        read_rows(task(), tmp_path)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- errors


def test_what_is_not_there_is_named(reviews: Hub, tmp_path: Path) -> None:
    for source, expected in (
        ({"hub": "lab/none"}, "the hub has no such repository, or it is private"),
        ({"revision": "d" * 40}, "the repository has no such commit; correct `revision`"),
        ({"split": "valid"}, "no split 'valid'; there are train, test"),
        ({"config": "none"}, "do not tell the rows of config none"),
    ):
        with pytest.raises(DataError, match=expected):
            read_rows(task(**source), tmp_path)


def test_a_gated_data_set_needs_a_login(hub: Hub, tmp_path: Path) -> None:
    hub.put(PLACE, gated=True, **{"train.csv": HEAD})
    with pytest.raises(SettingsError, match="it is gated; accept its terms on the hub, and set HF_TOKEN"):
        read_rows(task(), tmp_path)


def test_a_hub_that_does_not_answer_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ServiceUnavailable, match="the hub does not answer"):
        read_rows(task(), tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        {"hub": "../x"},
        {"hub": "https://huggingface.co/lab/x"},
        {"hub": "a/b/c"},
        {"revision": "main"},
        {"revision": None},
        {"split": "train[:10%]"},
        {"split": None},
        {"config": "../x"},
        {"format": "csv"},
    ],
)
def test_names_are_checked_before_they_are_asked_for(source: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.source"):
        task(**source)


def in_a_process(folder: Path, **environment: str) -> str:
    """What a process that reads the rows prints."""
    code = f"""
from pathlib import Path
from ptpipeline.data.sources import read_rows
from ptpipeline.settings import load_settings
from tests.data.test_hub import task
load_settings()
read_rows(task(), Path({str(folder / "home")!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_reading_leaves_nothing_behind(reviews: Hub, tmp_path: Path) -> None:
    places = {name: str(tmp_path / "user") for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME")}
    assert in_a_process(tmp_path, **places) == ""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_hub_on_this_machine_is_asked_without_a_proxy(reviews: Hub, tmp_path: Path) -> None:
    assert in_a_process(tmp_path, http_proxy="http://127.0.0.1:9", ALL_PROXY="http://127.0.0.1:9") == ""
