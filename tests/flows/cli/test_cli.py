"""`ptp` as a person runs it: one-line errors, exit codes, JSON, and a help that imports nothing heavy.

Most verbs run in the tests' own process, which has imported everything; a few run as a process of their own.
"""

import csv
import io
import json
import os
import pwd
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from flows.cli import main
from ptpipeline import load
from ptpipeline.errors import NotFound
from tests.tiny import tiny_project

Done = subprocess.CompletedProcess[str]


def environment_of(folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PTP_", "AWS_"))}
    return clean | {"PTP_HOME": str(folder / "home"), "PTP_TASKS": str(folder / "tasks"), "PTP_DTYPE": "float32"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tiny_project(tmp_path)
    return environment_of(tmp_path)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose one task ran: version 1 is in production."""
    folder = tmp_path_factory.mktemp("first-run")
    tiny_project(folder)
    assert ptp(environment_of(folder), "run", "tiny-sentiment").returncode == 0
    return folder


@pytest.fixture
def ran(environment: dict[str, str], first_run: Path, tmp_path: Path) -> None:
    """The test's task ran: version 1 is in production."""
    shutil.copytree(first_run / "home", tmp_path / "home")


def test_what_ptp_writes_is_readable_by_its_user_alone(first_run: Path) -> None:
    home = first_run / "home"
    written = [home, *home.rglob("*")]
    assert len(written) > 20
    assert [path for path in written if path.stat().st_mode & 0o077] == []


def ptp(environment: dict[str, str], *arguments: str, stdin: bytes = b"") -> Done:
    """The verb in this process, with that environment and standard input."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
    return Done(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def process(environment: dict[str, str], *arguments: str) -> Done:
    """The verb as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def error_of(done: Done, code: int) -> str:
    """The one line that the command ended with."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    return lines[-1]


def test_a_task_is_run_shown_and_asked(environment: dict[str, str]) -> None:
    ran = ptp(environment, "run", "tiny-sentiment", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["status"] == "promoted"
    [version] = [json.loads(line) for line in ptp(environment, "versions", "--json").stdout.splitlines()]
    assert (version["version"], version["verdict"], version["aliases"]) == (1, "passed", "production")
    shown = json.loads(ptp(environment, "show", "tiny-sentiment", "--json").stdout)
    assert shown["manifest"]["num_virtual_tokens"] == 4
    answers = [
        json.loads(line)
        for line in ptp(
            environment, "predict", "tiny-sentiment@1", "-", "--json", stdin=b"good film\n\nbad film\n"
        ).stdout.splitlines()
    ]
    assert [answer["version"] for answer in answers] == ["tiny-sentiment@1"] * 3
    assert [(answer["index"], answer["label"]) for answer in answers] == [(0, "positive"), (1, None), (2, "negative")]
    [row] = [json.loads(line) for line in ptp(environment, "history", "tiny-sentiment", "--json").stdout.splitlines()]
    assert (row["alias"], row["version"], row["previous"], row["actor"]) == ("production", 1, None, "nightly")
    assert ptp(environment, "doctor").returncode == 0
    (Path(environment["PTP_HOME"]) / "store/prompts/tiny-sentiment/aliases/production.json").unlink()
    assert ptp(environment, "doctor").returncode == 4
    assert ptp(environment, "reconcile").returncode == 0
    assert ptp(environment, "doctor").returncode == 0


def test_a_failed_gate_is_exit_code_4(environment: dict[str, str]) -> None:
    path = Path(environment["PTP_TASKS"]) / "tiny-sentiment.yaml"
    path.write_text(path.read_text().replace('init: {text: " yes"}, steps: 10', "steps: 2"))
    ran = ptp(environment, "run", "tiny-sentiment", "--json")
    assert ran.returncode == 4
    assert json.loads(ran.stdout)["status"] == "no gain"


def test_a_failed_version_goes_to_production_by_override_alone(environment: dict[str, str]) -> None:
    path = Path(environment["PTP_TASKS"]) / "tiny-sentiment.yaml"
    path.write_text(path.read_text().replace('init: {text: " yes"}, steps: 10', "steps: 2"))
    assert ptp(environment, "run", "tiny-sentiment").returncode == 4
    assert "it failed the gate" in error_of(ptp(environment, "promote", "tiny-sentiment@1", "--reason", "urgent"), 1)
    assert "needs an actor and a reason" in error_of(
        ptp(environment, "promote", "tiny-sentiment@1", "--override", "--reason", " "), 1
    )
    assert ptp(environment, "promote", "tiny-sentiment@1", "--override", "--reason", "urgent").returncode == 0
    [row] = [json.loads(line) for line in ptp(environment, "history", "tiny-sentiment", "--json").stdout.splitlines()]
    assert (row["override"], row["reason"]) == (True, "urgent")


LINES = [
    (b"one two\nthree\xe2\x80\xa8four\nfive\xe2\x80\xa8six\n", ["one two", "three\u2028four", "five\u2028six"]),
    (b"a\x0cb\x0bc\x1cd\xc2\x85e\xe2\x80\xa9f\n", ["a\x0cb\x0bc\x1cd\x85e\u2029f"]),
    (b"good\r\nbad\r\n", ["good", "bad"]),
    (b"good\n\n \t\nbad", ["good", "", " \t", "bad"]),
    (b"good\n\n", ["good", ""]),
    (b"\xef\xbb\xbfgood\n", ["good"]),
    (b"a\rb\n", ["a\rb"]),
    (b"\n", [""]),
    (b"", []),
]


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(("body", "texts"), LINES)
def test_every_line_has_one_answer_at_its_place(environment: dict[str, str], body: bytes, texts: list[str]) -> None:
    done = ptp(environment, "predict", "tiny-sentiment", "-", "--json", stdin=body)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["index"] for answer in answers] == list(range(len(texts)))
    assert [answer["label"] is None for answer in answers] == [not text.strip() for text in texts]
    filled = [text for text in texts if text.strip()]
    alone = ptp(environment, "predict", "tiny-sentiment", "--json", "--", *filled) if filled else None
    labels = [json.loads(line)["label"] for line in alone.stdout.splitlines()] if alone else []
    assert [answer["label"] for answer in answers if answer["label"]] == labels


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"good film\ncaf\xe9 film\n", "standard input, line 2: not UTF-8 (byte 0xe9 at place 4)"),
        (
            "good\n".encode("utf-16"),
            "standard input: the texts are UTF-16; convert them first by `iconv -f UTF-16 -t UTF-8`",
        ),
        (b"a\n\nb\xff", "standard input, line 3: not UTF-8"),
    ],
)
def test_a_line_that_is_not_utf8_is_named(environment: dict[str, str], body: bytes, sentence: str) -> None:
    done = ptp(environment, "predict", "tiny-sentiment", "-", stdin=body)
    assert sentence in error_of(done, 1)
    assert done.stdout == ""


@pytest.mark.usefixtures("ran")
def test_an_argument_that_is_not_utf8_is_named(environment: dict[str, str]) -> None:
    done = ptp(environment, "predict", "tiny-sentiment", "good", os.fsdecode(b"caf\xe9"))  # as Python reads arguments
    assert "error: text 2: not Unicode" in error_of(done, 1)


def test_a_closed_standard_input_is_told(environment: dict[str, str]) -> None:
    command = f"exec {sys.executable} -m flows.cli predict tiny-sentiment - <&-"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert "standard input is closed" in error_of(done, 1)


@pytest.mark.usefixtures("ran")
def test_a_release_is_promoted_and_rolled_back(environment: dict[str, str]) -> None:
    tasks = Path(environment["PTP_TASKS"])
    tasks.joinpath("tiny-sentiment.yaml").write_text(
        tasks.joinpath("tiny-sentiment.yaml")
        .read_text()
        .replace("steps: 10", "steps: 11")
        .replace("promote: auto", "promote: manual")
    )
    assert ptp(environment, "run", "tiny-sentiment").returncode == 0
    assert "name a task twice" in error_of(
        ptp(environment, "release", "promote", "spring", "tiny-sentiment@1", "tiny-sentiment@2", "--reason", "both"), 1
    )
    promoted = ptp(environment, "release", "promote", "spring", "tiny-sentiment@2", "--reason", "new base", "--json")
    assert json.loads(promoted.stdout)["release"] == "spring", promoted.stderr
    [listed] = [json.loads(line) for line in ptp(environment, "release", "list", "--json").stdout.splitlines()]
    assert (listed["release"], listed["versions"]) == ("spring", {"tiny-sentiment": 2})
    assert "holds tiny-sentiment@2 already" in error_of(
        ptp(environment, "release", "promote", "spring", "tiny-sentiment@1", "--reason", "other"), 1
    )
    assert (
        json.loads(ptp(environment, "release", "rollback", "spring", "--reason", "slow", "--json").stdout)["version"]
        == 1
    )
    assert "no release 'autumn'" in error_of(ptp(environment, "release", "rollback", "autumn", "--reason", "slow"), 1)


@pytest.mark.usefixtures("ran")
def test_lineage_leads_from_a_version_to_its_rows_and_back(environment: dict[str, str], tmp_path: Path) -> None:
    traced = json.loads(ptp(environment, "lineage", "tiny-sentiment", "--json").stdout)
    assert traced["origins"][0]["version"] == 1
    rows = Path(environment["PTP_TASKS"]).parent / "tiny-sentiment.csv"
    with rows.open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    found = []
    for text in texts[:8]:  # some fall into the test split, which nothing learnt from
        (tmp_path / "row.txt").write_text(text)
        back = ptp(environment, "lineage", "--text-file", str(tmp_path / "row.txt"), "--json")
        assert back.returncode == 0, back.stderr
        assert text not in back.stdout + back.stderr
        found += [json.loads(line) for line in back.stdout.splitlines()]
    assert {(row["task"], row["version"], row["aliases"][0]) for row in found} == {("tiny-sentiment", 1, "production")}
    assert "cannot be read (No such file" in error_of(
        ptp(environment, "lineage", "--text-file", str(tmp_path / "none")), 1
    )
    assert ptp(environment, "lineage").returncode == 2


def test_garbage_is_listed_first_and_collected_on_demand(environment: dict[str, str]) -> None:
    path = Path(environment["PTP_TASKS"]) / "tiny-sentiment.yaml"
    text = path.read_text().replace("promote: auto", "promote: manual")
    for steps in (10, 11, 12):
        path.write_text(text.replace("steps: 10", f"steps: {steps}"))
        assert ptp(environment, "run", "tiny-sentiment").returncode == 0
    assert ptp(environment, "promote", "tiny-sentiment@2", "--reason", "good").returncode == 0
    would = ptp(environment, "gc", "--keep", "1", "--grace", "0", "--json")
    assert [
        json.loads(line)["version"] for line in would.stdout.splitlines() if json.loads(line)["what"] == "version"
    ] == [1]
    assert "`--apply` deletes them" in would.stderr
    assert ptp(environment, "gc", "--keep", "1", "--grace", "0", "--apply").returncode == 0
    shown = {
        row["version"]: row["bytes"]
        for row in map(json.loads, ptp(environment, "versions", "--json").stdout.splitlines())
    }
    assert shown == {1: "collected", 2: "", 3: ""}
    assert ptp(environment, "doctor").returncode == 0
    for gone in (
        ("promote", "tiny-sentiment@1", "--reason", "back"),
        ("show", "tiny-sentiment@1"),
        ("predict", "tiny-sentiment@1", "x"),
    ):
        assert "garbage collection" in error_of(ptp(environment, *gone), 1)


@pytest.mark.usefixtures("ran")
def test_a_lost_ledger_is_made_anew(environment: dict[str, str]) -> None:
    before = ptp(environment, "history", "tiny-sentiment", "--json").stdout
    for file in Path(environment["PTP_HOME"]).glob("ledger.db*"):
        file.unlink()
    assert ptp(environment, "doctor").returncode == 4
    assert ptp(environment, "doctor", "--rebuild-ledger", "--fix").returncode == 0
    assert ptp(environment, "history", "tiny-sentiment", "--json").stdout == before
    again = ptp(environment, "run", "tiny-sentiment", "--json")
    assert json.loads(again.stdout)["status"] == "unchanged", again.stderr


@pytest.mark.usefixtures("ran")
def test_a_damaged_pointer_is_mended(environment: dict[str, str]) -> None:
    (Path(environment["PTP_HOME"]) / "store/prompts/tiny-sentiment/aliases/production.json").write_text("{}")
    assert ptp(environment, "doctor").returncode == 4
    assert ptp(environment, "doctor", "--fix").returncode == 0


@pytest.mark.usefixtures("ran")
def test_a_version_is_signed_later(environment: dict[str, str], tmp_path: Path) -> None:
    assert "PTP_SIGNING_KEY is not set" in error_of(ptp(environment, "sign", "tiny-sentiment"), 1)
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    key.chmod(0o600)
    strict = environment | {"PTP_TRUSTED_KEYS": str(public)}
    assert "sign" in error_of(ptp(strict, "predict", "tiny-sentiment", "x"), 1)
    assert ptp(environment | {"PTP_SIGNING_KEY": str(key)}, "sign", "tiny-sentiment").returncode == 0
    assert ptp(strict, "predict", "tiny-sentiment", "good film").returncode == 0


@pytest.mark.usefixtures("ran")
def test_a_version_leaves_for_peft_and_comes_back_as_a_candidate(environment: dict[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    exported = json.loads(
        ptp(environment, "export", "tiny-sentiment", "--format", "peft", "--to", out, "--json").stdout
    )
    assert (exported["version"], exported["files"]) == (
        "tiny-sentiment@1",
        ["adapter_config.json", "adapter_model.safetensors", "manifest.json"],
    )
    assert "not empty" in error_of(ptp(environment, "export", "tiny-sentiment", "--to", out), 1)
    back = ptp(environment, "import", out, "--task", "tiny-sentiment", "--json")
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["version"] == 2
    assert "proves nothing" in back.stderr
    moves = [json.loads(line) for line in ptp(environment, "history", "tiny-sentiment", "--json").stdout.splitlines()]
    assert {row["version"]: row["actor"] for row in moves}[2] == pwd.getpwuid(os.getuid()).pw_name
    assert ptp(environment, "doctor").returncode == 0


def test_an_unknown_field_is_one_line(environment: dict[str, str]) -> None:
    path = Path(environment["PTP_TASKS"]) / "tiny-sentiment.yaml"
    lines = path.read_text().replace("promote:", "promotion:").splitlines()
    path.write_text("\n".join(lines))
    number = 1 + lines.index("promotion: auto")
    line = error_of(ptp(environment, "tasks"), 1)
    assert f"{path}:{number}: promotion: unknown field; allowed here:" in line


@pytest.mark.usefixtures("ran")
def test_a_stray_file_stops_no_other_task(environment: dict[str, str]) -> None:
    tasks = Path(environment["PTP_TASKS"])
    (tasks / ".#tiny-sentiment.yaml").symlink_to("user@host.12345:1700000000")
    assert ptp(environment, "tasks").returncode == 0
    (tasks / "folder.yaml").mkdir()
    (tasks / "other.yml").touch()
    listed = ptp(environment, "tasks", "--json")
    assert json.loads(listed.stdout)["task"] == "tiny-sentiment"
    assert "rename it to other.yaml" in listed.stderr
    assert f"{tasks}/folder.yaml: not a regular file" in error_of(listed, 1)
    for verb in (("run", "tiny-sentiment"), ("reconcile",), ("doctor", "--fix"), ("versions",)):
        assert ptp(environment, *verb).returncode == 0


def test_all_that_is_wrong_with_the_tasks_is_told_at_once(environment: dict[str, str]) -> None:
    tasks = Path(environment["PTP_TASKS"])
    path = tasks / "tiny-sentiment.yaml"
    path.write_text(path.read_text().replace("base_model: tiny", "base_model: huge").replace("steps: 10", "steps: 2"))
    (tasks / "other.yaml").write_text("name: other\n")
    listed = ptp(environment, "tasks")
    assert f"note: {path}:10: tune.steps: all 2 steps lie within the warm-up of 3" in listed.stderr
    assert f"error: {tasks}/other.yaml:1: base_model: this field is required and missing" in listed.stderr
    assert f"{path}:2: base_model: no base model 'huge' in" in error_of(listed, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "nothing"), "no task 'nothing'"),
        (("run", "../etc"), "a task name has lower-case letters"),
        (
            ("predict", "tiny-sentiment", "x"),
            "if its task file says `promote: manual`, approve it with `ptp approve tiny-sentiment@N`",
        ),
        (("predict", "tiny-sentiment@7", "x"), "has no version 7"),
        (("predict", "tiny@sent@iment", "x"), "names no prompt"),
        (("promote", "tiny-sentiment@1", "--reason", "x"), "nothing is registered yet"),
        (("rollback", "tiny-sentiment", "--reason", "x"), "nothing is registered yet"),
        (("trigger", "nightly"), "`ptp up` starts"),
        (("export", "tiny-sentiment", "--to", "out"), "tiny-sentiment has no production version"),
        (("import", "out", "--task", "tiny-sentiment"), "out: no prompt to import"),
        (("import", "out", "--task", "nothing"), "no task 'nothing'"),
    ],
)
def test_what_is_not_there_is_named(environment: dict[str, str], arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in error_of(ptp(environment, *arguments), 1)


READERS = [
    ("versions",),
    ("show", "mood"),
    ("history", "mood"),
    ("release", "list"),
    ("doctor",),
    ("lineage", "mood"),
    ("gc",),
    ("predict", "mood", "x"),
    ("export", "mood", "--to", "out"),
    ("report", "mood", "--to", "out.html"),
    ("neighbours", "mood"),
    ("evaluate", "mood", "--data", "rows.csv"),
]
WRITERS = [
    ("run", "mood"),
    ("ingest", "mood"),
    ("reconcile",),
    ("gc", "--apply"),
    ("promote", "mood@1", "--reason", "good"),
    ("rollback", "mood", "--reason", "bad"),
]


@pytest.mark.parametrize("verb", [*READERS, *WRITERS], ids=" ".join)
def test_another_folder_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ptp").mkdir()  # an older ptp left it
    line = error_of(ptp({name: os.environ[name] for name in ("PATH", "HOME")}, *verb), 1)
    assert f"no project or stack is here: neither in the home folder {tmp_path}/.ptp (PTP_HOME)" in line
    assert "PTP_HOME=/path/to/project/.ptp" in line
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [".ptp"]


@pytest.mark.parametrize("verb", [*READERS, ("status",), ("down",), ("tasks",)], ids=" ".join)
def test_reading_creates_nothing(environment: dict[str, str], tmp_path: Path, verb: tuple[str, ...]) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = ptp(environment, *verb)
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["status", "down"])
def test_a_folder_without_a_stack_says_so(environment: dict[str, str], verb: str) -> None:
    assert f"no stack is in {environment['PTP_HOME']}: `ptp up` starts one" in ptp(environment, verb).stderr


def test_servers_elsewhere_are_not_told_as_a_stack_that_is_down(environment: dict[str, str]) -> None:
    done = ptp({**environment, "PTP_PREFECT": "http://127.0.0.1:9/api"}, "status")
    assert (
        "the settings name servers elsewhere (http://127.0.0.1:9/api); `ptp bootstrap --dry-run` tells" in done.stderr
    )
    assert "ptp up" not in done.stderr
    assert "down" not in done.stdout


def test_the_library_names_the_project_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PTP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match=r"no project or stack is here: .* set PTP_HOME to its home folder"):
        load("mood")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41", "a b", "a,b", "a;b&c=d", "ä한"])
def test_each_home_has_a_ledger_of_its_own(environment: dict[str, str], tmp_path: Path, name: str) -> None:
    one, other = (environment | {"PTP_HOME": str(tmp_path / home)} for home in (name, f"{name[:2]}x"))
    assert ptp(one, "reconcile").returncode == 0
    assert ptp(other, "reconcile").returncode == 0
    assert sorted(path.parent.name for path in tmp_path.rglob("ledger.db")) == sorted([name, f"{name[:2]}x"])


def test_an_unreachable_server_is_exit_code_3(environment: dict[str, str]) -> None:
    closed = "http://127.0.0.1:9"
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_MAX_ATTEMPTS": "1"}
    assert "object store" in error_of(
        ptp(environment | keys | {"PTP_STORE": "s3://b", "PTP_S3_ENDPOINT": closed}, "predict", "tiny-sentiment", "x"),
        3,
    )
    assert "Prefect" in error_of(ptp(environment | {"PTP_PREFECT": f"{closed}/api"}, "trigger", "nightly"), 3)


def test_a_run_without_mlflow_is_registered_and_promoted_and_says_that_the_page_lags(
    environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    done = ptp(environment | {"PTP_MLFLOW": "http://127.0.0.1:9"}, "run", "tiny-sentiment", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "promoted"
    assert "its page lags until a reconcile" in caplog.text


def test_a_process_keeps_answer_and_error_apart(environment: dict[str, str]) -> None:
    listed = process(environment, "tasks", "--json")
    assert (listed.returncode, json.loads(listed.stdout)["task"], listed.stderr) == (0, "tiny-sentiment", "")
    refused = process(environment, "show", "tiny-sentiment")
    assert "nothing is registered yet" in error_of(refused, 1)
    assert refused.stdout == ""


def test_wrong_usage_is_exit_code_2(environment: dict[str, str]) -> None:
    assert ptp(environment, "promote", "tiny-sentiment@1").returncode == 2
    assert ptp(environment, "export", "tiny-sentiment", "--format", "onnx", "--to", "out").returncode == 2


def test_light_verbs_import_nothing_heavy(environment: dict[str, str]) -> None:
    script = (
        "import sys; from flows.cli import main\nfor verb in ('--help', 'versions', 'tasks'):\n try: main([verb])\n "
        "except SystemExit as ended: assert not ended.code\n"
        "print(sorted({'torch','prefect','mlflow','transformers','datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(words in done.stdout for words in ("Exit codes:", "tiny-sentiment"))
