"""What the gate asks, told before the night; versions on a person's own rows; two versions against each other."""

import csv
import gzip
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

import ptpipeline
from flows.cli import main
from flows.on_demand.explanation import Explanation, describe
from flows.on_demand.preview import explain
from flows.stages.context import Context
from flows.stages.ingest import ingest
from flows.stages.promote import move
from ptpipeline.data.snapshot import load_split
from ptpipeline.errors import PtpError
from ptpipeline.evaluation.power import default_margin, rows_needed, smallest_gain
from ptpipeline.gate.spending import Budget
from ptpipeline.records.data import Snapshot
from ptpipeline.records.serving import Answer
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import VersionRef
from ptpipeline.task.policy import Checks
from ptpipeline.task.task import Task
from registry.ledger.looks import count_looks, take_look
from registry.registry import open_registry
from registry.versions.commit import Cause
from tests.flows.project import Project
from tests.tiny import sentences as rows_of
from tests.tiny import write_csv

NAME = "tiny-sentiment"
GOOD, POOR = 'init: {text: " yes"}, steps: 10', "steps: 2"


def task_of(project: Project) -> Task:
    return project.task(NAME)


def told(project: Project, **champion: Any) -> Explanation:
    """The explanation, under a changed rule for the champion if one is given."""
    task = task_of(project)
    gate = task.gate.model_copy(update={"champion": task.gate.champion.model_copy(update=champion)})
    return explain(Context(project.settings, open_registry(project.settings)), task.model_copy(update={"gate": gate}))


def verdict_of(project: Project, number: int) -> Verdict:
    ledger = project.stages.registry.ledger
    found = ledger.latest_verdict(NAME, ledger.version(NAME, number).digest)
    assert found is not None
    return found


def snapshot_of(project: Project) -> Snapshot:
    return ingest(project.stages, task_of(project))


def ids(project: Project, split: str = "test") -> list[str]:
    return [row.id for row in load_split(project.stages.registry.store, snapshot_of(project), split)]  # type: ignore[arg-type]


class Nights:
    """Two nights: version 1 is good and promoted, version 2 hardly trained; and what was told before each."""

    def __init__(self, project: Project) -> None:
        self.project = project
        snapshot_of(project)
        self.first = told(project)
        assert project.run().status == "promoted"
        self.second = told(project)
        project.edit(GOOD, POOR)
        assert project.run().version == 2
        project.edit(POOR, GOOD)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return Nights(Project(tmp_path_factory.mktemp("nights"), (NAME,)))


@pytest.fixture
def copied(nights: Nights, tmp_path: Path) -> Project:
    """The project after its nights, to change."""
    return nights.project.copy(tmp_path)


@pytest.fixture
def ptp(nights: Nights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`ptp` on the project after its nights: exit code, standard output, standard error."""
    settings = nights.project.settings
    for name, value in settings.model_dump(include={"home", "tasks", "store", "ledger", "dtype"}).items():
        monkeypatch.setenv(f"PTP_{name.upper()}", str(value))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def answers(project: Project, version: int, texts: list[str]) -> list[Answer]:
    return ptpipeline.load(f"{NAME}@{version}", project.settings).predict(texts)


# ---------------------------------------------------------------- gate explain


def test_before_anything_ran_it_says_what_is_not_known(tmp_path: Path) -> None:
    found = told(Project(tmp_path, (NAME,)), rule="non_inferiority", margin=None)
    assert (found.champion, found.judges, found.look, found.power) == (None, None, None, None)
    assert "ptp ingest tiny-sentiment" in found.unknown[0]
    assert {"minimum", "gain", "champion", "anchor", "finite", *Checks.model_fields} == {
        rule.check for rule in found.requirements
    }
    assert "nothing is in production yet" in next(rule.asks for rule in found.requirements if rule.check == "champion")


def test_what_waits_for_people_is_told_with_the_verb_that_takes_it(tmp_path: Path) -> None:
    project = Project(tmp_path, (NAME,))
    project.edit("promote: auto", "promote: manual")
    assert f"it waits for people: `ptp approve {NAME}@N`" in describe(told(project))[-1]


def test_a_missing_file_is_told_and_stops_nothing(tmp_path: Path) -> None:
    project = Project(tmp_path, (NAME,))
    (tmp_path / f"{NAME}.csv").unlink()
    assert "no such file" in told(project).unknown[0]


def test_a_source_that_cannot_be_asked_is_told_and_stops_nothing(tmp_path: Path) -> None:
    project = Project(tmp_path, (NAME,))
    path = f'path: "{tmp_path / f"{NAME}.csv"}", format: csv'
    project.edit(path, "sql: {url_env: ROWS_DB, query: SELECT 1}")
    assert "the environment variable ROWS_DB is not set" in told(project).unknown[0]
    project.edit("sql: {url_env: ROWS_DB, query: SELECT 1}", f"hub: a/b, revision: {'a' * 40}, split: train")
    assert "today's rows are not ingested yet" in told(project).unknown[0]


@pytest.mark.parametrize("number", [1, 2])
def test_the_look_that_is_told_is_the_one_that_is_taken(nights: Nights, number: int) -> None:
    before, verdict = (nights.first, nights.second)[number - 1], verdict_of(nights.project, number)
    assert before.look == verdict.look
    assert before.judges is not None
    compared = verdict.comparison or verdict.baselines["majority"]
    assert before.judges.comparable == compared.rows


@pytest.mark.parametrize("number", [1, 2])
def test_every_check_of_a_verdict_was_told_with_its_policy(nights: Nights, number: int) -> None:
    policies = {rule.check: rule.policy for rule in (nights.first, nights.second)[number - 1].requirements}
    for check in verdict_of(nights.project, number).checks:
        assert policies[check.name] == check.policy


def test_the_champion_is_told_with_its_figure_and_looks(nights: Nights) -> None:
    champion = nights.second.champion
    assert champion is not None
    report = nights.project.stages.registry.ledger.report_of(NAME, verdict_of(nights.project, 1).digest)
    assert report is not None
    assert (champion.version, champion.figure, champion.rows, champion.looks) == (
        1,
        report.prompt.figures()["accuracy"],
        report.rows,
        1,
    )
    assert any("looked at once" in line for line in describe(nights.second))


def test_asking_takes_no_look(nights: Nights) -> None:
    assert told(nights.project) == told(nights.project)
    assert count_looks(nights.project.stages.registry.ledger, NAME, ids(nights.project)) == 2


def test_power_rests_on_what_the_last_candidate_differed_in(nights: Nights) -> None:
    before, after = nights.second.power, told(nights.project).power
    assert before is not None
    assert after is not None
    comparison = verdict_of(nights.project, 2).comparison
    assert comparison is not None
    assert (before.measured, before.discordant) == (False, 0.1)
    assert (after.measured, after.discordant) == (True, comparison.discordant)
    assert after.rows_needed != before.rows_needed


@pytest.mark.parametrize(
    ("rows", "alpha", "discordant"),
    [(240, 0.03, 0.1), (2000, 1e-3, 0.05), (36, 1e-6, 0.2), (500, 0.05, 0.01), (1487, 0.0076, 0.5)],
)
def test_the_smallest_gain_is_what_so_many_rows_are_needed_for(rows: int, alpha: float, discordant: float) -> None:
    gain = smallest_gain(rows, alpha, discordant)
    assert gain is not None
    assert rows_needed(gain, alpha, discordant) == pytest.approx(rows, abs=1 + rows / 500)
    assert smallest_gain(3, 1e-9, discordant) is None


def test_the_margin_of_non_inferiority_follows_the_rows(nights: Nights) -> None:
    found = told(nights.project, rule="non_inferiority", margin=None)
    assert found.judges is not None
    assert found.margin == default_margin(found.judges.comparable, 0.05)
    assert found.anchor is None  # the champion won by superiority
    assert f"at most {found.margin:.4f} worse than version 1" in next(
        rule.asks for rule in found.requirements if rule.check == "champion"
    )
    assert told(nights.project, rule="non_inferiority", margin=0.02).margin == 0.02


def test_superiority_asks_for_no_margin_and_no_anchor(nights: Nights) -> None:
    found = told(nights.project, rule="superiority", margin=None)
    assert (found.margin, found.anchor, [rule.asks for rule in found.requirements if rule.check == "anchor"]) == (
        None,
        None,
        [],
    )
    assert "better than version 1" in next(rule.asks for rule in found.requirements if rule.check == "champion")
    assert not any(line.startswith("non-inferiority") for line in describe(found))


def test_a_champion_by_a_persons_word_is_the_anchor_itself(copied: Project) -> None:
    move(copied.stages, NAME, "production", 2, Cause("ann", "for the sake of it", override=True))
    found = told(copied, rule="non_inferiority")
    assert found.champion is not None
    assert (found.champion.version, found.anchor) == (2, None)


def test_a_champion_of_other_labels_is_told_to_be_incomparable(copied: Project) -> None:
    task = task_of(copied).model_copy(update={"labels": {"bad": " bad", "good": " good"}})
    champion = explain(Context(copied.settings, open_registry(copied.settings)), task).champion
    assert champion is not None
    assert "labels negative, positive" in (champion.incomparable or "")


def test_a_champion_whose_training_rows_are_gone_is_told_to_be_incomparable(copied: Project) -> None:
    old = snapshot_of(copied)
    path = copied.folder / "tiny-sentiment.csv"
    path.write_text(path.read_text() + "something new,positive\n")
    assert snapshot_of(copied).digest != old.digest
    forget(copied, old)
    found = told(copied)
    assert found.champion
    assert old.digest in (found.champion.incomparable or "")
    assert found.judges
    assert found.judges.comparable == found.judges.rows


def test_rows_that_are_gone_judge_nothing(copied: Project) -> None:
    forget(copied, snapshot_of(copied))
    found = told(copied)
    assert found.judges is None
    assert "`ptp ingest tiny-sentiment` does it; so which rows judge" in found.unknown[0]


def forget(project: Project, snapshot: Snapshot) -> None:
    store = project.stages.registry.store
    for key in list(store.keys(f"snapshots/{snapshot.task}/{snapshot.digest}")):
        store.delete(key)


def test_the_reserve_takes_over_after_the_looks(tmp_path: Path) -> None:
    project = Project(tmp_path, (NAME,))
    project.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15, test: 0.25, reserve: 0.2}")
    test_rows, reserve = ids(project), ids(project, "reserve")
    before = told(project, looks=1)
    assert before.judges is not None
    assert (before.judges.split, before.judges.rows, before.judges.reserve) == ("test", len(test_rows), len(reserve))
    taken = take_look(project.stages.registry.ledger, NAME, "a question", test_rows, Budget(0.05))
    after = told(project, looks=1)
    assert after.judges is not None
    assert after.look is not None
    assert (after.judges.split, after.judges.rows, after.judges.served) == ("reserve", len(reserve), 1)
    assert (after.look.test_set, after.look.number) == (taken.test_set + 1, 1)
    assert f"{len(reserve)} reserve rows" in "".join(describe(after))


def test_explain_prints_sentences_or_json(ptp: Any) -> None:
    code, out, _ = ptp("gate", "explain", NAME)
    assert (code, "look: number 3 at test set 1" in out, "robustness" in out) == (0, True, True)
    code, out, _ = ptp("gate", "explain", NAME, "--json")
    assert (code, Explanation.model_validate_json(out).look is not None) == (0, True)
    code, _, err = ptp("gate", "explain", "nothing")
    assert (code, "no task 'nothing'" in err) == (1, True)


def test_explain_imports_nothing_that_trains(ptp: Any) -> None:
    script = (
        f"import sys; from flows.cli import main\ntry: main(['gate', 'explain', '{NAME}'])\nexcept SystemExit as "
        f"end: assert not end.code\nprint(sorted({{'torch','prefect','mlflow','transformers','datasets'}} & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---------------------------------------------------------------- evaluate


def everything(project: Project) -> dict[str, Any]:
    """All that store and ledger hold."""
    files = {str(path): path.read_bytes() for path in sorted((project.folder / "store").rglob("*")) if path.is_file()}
    with sqlite3.connect(project.folder / "ledger.db") as database:
        return {**files, "ledger": list(database.iterdump())}


def test_a_version_is_measured_on_a_file(nights: Nights, ptp: Any, tmp_path: Path) -> None:
    rows = rows_of(40, seed=91)
    before = everything(nights.project)
    code, out, _ = ptp("evaluate", f"{NAME}@2", "--data", str(write_csv(tmp_path / "own.csv", rows)), "--json")
    assert code == 0
    assert everything(nights.project) == before
    found = json.loads(out)
    truth, predicted = (
        [label for _, label in rows],
        [answer.label for answer in answers(nights.project, 2, [text for text, _ in rows])],
    )
    assert found["scores"]["prompt"]["accuracy"] == sum(a == b for a, b in zip(truth, predicted, strict=True)) / 40
    assert found["scores"]["prompt"]["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["scores"]["majority"]["accuracy"] in {truth.count("negative") / 40, truth.count("positive") / 40}
    low, high = found["interval"]["prompt"]["accuracy"]
    assert low <= found["scores"]["prompt"]["accuracy"] <= high
    assert {"prompt", "majority", "zero_shot", "hard_prompt"} == set(found["scores"])
    assert (found["rows"], found["version"], found["left_out"]) == (40, 2, {})


def test_the_formats_of_a_file_are_measured_alike(ptp: Any, tmp_path: Path) -> None:
    rows = rows_of(12, seed=92)
    frame = pandas.DataFrame(rows, columns=["text", "label"])
    write_csv(tmp_path / "rows.csv", rows)
    frame.to_csv(tmp_path / "rows.tsv", sep="\t", index=False, quoting=csv.QUOTE_NONE)
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "rows.parquet")
    shutil.copy(tmp_path / "rows.parquet", tmp_path / "rows")
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    found = [
        json.loads(ptp("evaluate", NAME, "--data", str(path), *form, "--json")[1])["scores"]
        for path, form in (
            (tmp_path / "rows.csv", ()),
            (tmp_path / "rows.csv.gz", ()),
            (tmp_path / "rows.tsv", ()),
            (tmp_path / "rows.jsonl", ()),
            (tmp_path / "rows.parquet", ()),
            (tmp_path / "rows", ("--format", "parquet")),
        )
    ]
    assert all(scores == found[0] for scores in found)


def test_rows_that_trained_the_version_are_counted(nights: Nights, ptp: Any) -> None:
    code, out, _ = ptp("evaluate", f"{NAME}@1", "--data", str(nights.project.folder / f"{NAME}.csv"), "--json")
    assert code == 0
    assert json.loads(out)["trained_on"] == len(ids(nights.project, "train"))
    _, out, _ = ptp("evaluate", f"{NAME}@1", "--data", str(nights.project.folder / f"{NAME}.csv"))
    assert "of these rows, so its figures are too good" in out
    assert all(word in out for word in ("zero-shot", "macro F1", "calibration error", "precision", "answered"))
    rows = [line.split() for line in out.splitlines() if line.startswith(("negative ", "positive "))]
    assert all(row[4].isdigit() for row in rows)  # the support, between F1 and what was answered
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "own.csv",
            b"words,label\na,negative\n",
            "no column 'text', which data.text names; the columns are words, label",
        ),
        (
            "own.csv",
            b"text,label\na film,negative\nthe plot,boring\n",
            "check unknown_label found 1: line 3: the column holds text: 'boring' (1 row)",
        ),
        ("own.csv", b"", "the file is empty"),
        ("own.csv", b"text,label\n", "there are no rows"),
        ("own.csv", "text,label\na film,negative\ncaf\u00e9,positive\n".encode("latin-1"), "line 3: not UTF-8"),
        ("own.csv", b"text,label\na film,negative\nA  Film,negative\n", "1 row is left after the checks"),
        ("own.csv", b"text,label\na film,negative\n" + b"film " * 300 + b",positive\n", "own.csv: too long: line 3; "),
        ("own.jsonl", b'{"text": "a"\n', "not readable as jsonl: line 1"),
        ("own.txt", b"text,label\n", "its name does not tell its format; give --format csv, tsv, jsonl or parquet"),
    ],
)
def test_a_file_that_cannot_be_measured_is_one_sentence(
    ptp: Any, tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code, out, err = ptp("evaluate", NAME, "--data", str(tmp_path / name))
    last = err.splitlines()[-1]
    assert (code, out) == (1, "")
    assert last.startswith("error: ")
    assert sentence in last
    assert "plot" not in err
    assert "film" not in err


@pytest.mark.parametrize(
    ("name", "body", "options"),
    [
        ("own.csv", '"text";"label"\n"a film";"negative"\n"the plot";"positive"\n', ["--delimiter", ";"]),
        ("own.csv", "text\tlabel\na film\tnegative\nthe plot\tpositive\n", ["--delimiter", r"\t"]),
        (
            "own.csv",
            '{"text":"a film","label":"negative"}\n{"text":"the plot","label":"positive"}',
            ["--format", "jsonl"],
        ),
    ],
)
def test_the_options_that_a_message_names_measure_the_file(
    ptp: Any, tmp_path: Path, name: str, body: str, options: list[str]
) -> None:
    own = tmp_path / name
    own.write_text(body)
    code, _, err = ptp("evaluate", NAME, "--data", str(own))
    option, value = options
    assert (code, f"give {option} " in err, value in err, "data.source" in err) == (1, True, True, False)
    assert ptp("evaluate", NAME, "--data", str(own), *options)[0] == 0


NAMES = ["mine[1].csv", "x[y].csv", "mine*.csv", "mine?.csv", "a::b.csv", "a#b.csv", "a%31.csv", "{a,b}.csv", "a b.CSV"]


@pytest.mark.parametrize("name", [*NAMES, "mine[1].csv.gz", "[a]/*.csv", "~/x[1].csv", "$HOME.csv"])
def test_a_file_is_measured_by_its_own_name_and_never_by_a_pattern(
    ptp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for near in ("mine1.csv", "x.csv", "xy.csv", "mine2.csv", "a1.csv", "b.csv", "a/b.csv", "user/x1.csv"):
        (tmp_path / near).parent.mkdir(exist_ok=True)
        write_csv(tmp_path / near, rows_of(30))
    own = Path(name).expanduser()
    own.parent.mkdir(parents=True, exist_ok=True)
    write_csv(own, rows_of(7, seed=8))
    if name.endswith(".gz"):
        own.write_bytes(gzip.compress(own.read_bytes()))
    code, out, err = ptp("evaluate", NAME, "--data", name, "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 7


@pytest.mark.parametrize("name", ["mine[12].csv", "mine*.csv", "mine?.csv", "::mine1.csv"])
def test_a_pattern_of_other_files_is_no_file_to_measure(
    ptp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "mine1.csv", rows_of(7))
    code, _, err = ptp("evaluate", NAME, "--data", name)
    assert (code, f"{name}: no such file" in err) == (1, True)


def test_what_there_is_not_cannot_be_measured(ptp: Any, tmp_path: Path) -> None:
    own = write_csv(tmp_path / "own.csv", rows_of(4))
    assert "no such file" in ptp("evaluate", NAME, "--data", str(tmp_path / "none.csv"))[2]
    assert "no version 7" in ptp("evaluate", f"{NAME}@7", "--data", str(own))[2]
    assert ptp("evaluate", NAME)[0] == 2


def test_a_version_of_other_labels_cannot_be_measured(
    copied: Project, ptp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied.edit('labels: {negative: " negative", positive: " positive"}', 'labels: {bad: " bad", good: " good"}')
    monkeypatch.setenv("PTP_TASKS", str(copied.tasks))
    own = write_csv(tmp_path / "own.csv", [("a film", "bad"), ("the plot", "good")])
    code, _, err = ptp("evaluate", f"{NAME}@1", "--data", str(own))
    assert (
        code,
        "on the rows of task tiny-sentiment: it answers the labels negative, positive, the task now has bad, good"
        in err,
    ) == (1, True)
    code, _, err = ptp("diff", f"{NAME}@1", f"{NAME}@2")
    assert (code, "name a version that was trained since" in err) == (1, True)


# ---------------------------------------------------------------- diff


def test_two_versions_differ_in_the_rows_that_they_answer_differently(nights: Nights, ptp: Any) -> None:
    rows = load_split(nights.project.stages.registry.store, snapshot_of(nights.project), "test")
    old, new = (
        [answer.label for answer in answers(nights.project, number, [row.text for row in rows])] for number in (1, 2)
    )
    expected = {
        row.id: (row.label, before, after) for row, before, after in zip(rows, old, new, strict=True) if before != after
    }
    assert expected
    looks = count_looks(nights.project.stages.registry.ledger, NAME, [row.id for row in rows])
    code, out, _ = ptp("diff", f"{NAME}@1", f"{NAME}@2", "--json")
    found = json.loads(out)
    assert code == 0
    assert {row["id"]: (row["label"], row["before"], row["after"]) for row in found["changed"]} == expected
    won, lost = (sum(tally[name] for tally in found["tallies"]) for name in ("won", "lost"))
    assert (won, lost) == (
        sum(label == after for label, _, after in expected.values()),
        sum(label == before for label, before, _ in expected.values()),
    )
    assert found["better"]["p_value"] == pytest.approx(binomtest(won, won + lost, alternative="greater").pvalue)
    assert found["worse"]["p_value"] == pytest.approx(binomtest(lost, won + lost, alternative="greater").pvalue)
    assert found["better"]["difference"] == pytest.approx((won - lost) / len(rows)) == -found["worse"]["difference"]
    assert count_looks(nights.project.stages.registry.ledger, NAME, [row.id for row in rows]) == looks


def test_texts_are_printed_only_where_they_are_asked_for(nights: Nights, ptp: Any) -> None:
    texts = [row.text for row in load_split(nights.project.stages.registry.store, snapshot_of(nights.project), "test")]
    before = everything(nights.project)
    _, out, err = ptp("diff", f"{NAME}@1", f"{NAME}@2")
    assert not [text for text in texts if text in out + err]
    assert "the gate may not use a p seen here" in out
    _, out, err = ptp("diff", f"{NAME}@1", f"{NAME}@2", "--texts")
    assert [text for text in texts if text in out]
    assert not [text for text in texts if text in err]
    assert {key: value for key, value in everything(nights.project).items() if key != "ledger"} == {
        key: value for key, value in before.items() if key != "ledger"
    }


def test_a_version_against_itself_differs_nowhere(ptp: Any) -> None:
    code, out, err = ptp("diff", f"{NAME}@1", NAME)
    assert (code, "no row is answered differently" in err, "p 1 by exact McNemar" in out) == (0, True, True)


def test_versions_of_two_tasks_do_not_compare(nights: Nights, ptp: Any) -> None:
    nights.project.stages.registry.ledger.intend("other", "a" * 64)
    code, _, err = ptp("diff", f"{NAME}@1", "other@1")
    assert (code, "versions of two tasks" in err) == (1, True)


def test_a_version_of_free_text_is_compared_by_the_rows_metric(tmp_path: Path) -> None:
    from flows.on_demand.diff import diff
    from flows.on_demand.measure import measure_file
    from tests.flows.stages.test_generation import generating

    project = generating(Project(tmp_path, (NAME,)))
    project.run()
    project.edit(GOOD, POOR)
    project.run()
    context = Context(project.settings, open_registry(project.settings))
    found = diff(context, VersionRef(NAME, 1), VersionRef(NAME, 2), texts=True)
    [tally] = found.tallies
    assert found.changed
    assert (tally.rows, tally.won + tally.lost) == (found.better.rows, len(found.changed))
    assert found.better.difference == pytest.approx((tally.won - tally.lost) / tally.rows)
    assert all(row.text and row.label is None and {row.before, row.after} == {0.0, 1.0} for row in found.changed)
    own = measure_file(context, VersionRef(NAME, 1), write_csv(tmp_path / "own.csv", rows_of(8, seed=93)))
    assert own.scores["prompt"].figures()["exact_match"] > own.scores["zero_shot"].figures()["exact_match"]
    with pytest.raises(PtpError, match="no such file"):
        measure_file(context, VersionRef(NAME, 1), tmp_path / "none.csv")
