"""A store and a ledger that earlier code wrote answer as they did, to the field, from a copy in another
place.

What each verb says stands in `answers/`. Sentences that the verbs make up are left out; those that are stored are not.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.golden import inputs, product
from tests.golden.pins import FOLDER, assert_same, pinned, without_words

VERBS: dict[
    str, tuple[int, list[str], tuple[str, ...]]
] = {  # file -> exit code, arguments, fields whose sentences are left out
    "versions": (0, ["versions"], ()),
    "show-mood-1": (0, ["show", "mood@1"], ()),
    "show-mood-2": (0, ["show", "mood@production"], ()),
    "show-mood-3": (0, ["show", "mood@3"], ()),
    "show-topic-1": (0, ["show", "topic@staging"], ()),
    "show-topic-2": (0, ["show", "topic@2"], ()),
    "history-mood": (0, ["history", "mood"], ()),
    "history-topic": (0, ["history", "topic"], ()),
    "releases": (0, ["release", "list"], ()),
    "tasks": (0, ["tasks"], ()),
    "doctor": (0, ["doctor"], ()),
    "lineage-mood": (0, ["lineage", "mood"], ()),
    "lineage-topic": (0, ["lineage", "topic@1"], ()),
    "lineage-row": (0, ["lineage", "--text-file", "row.txt"], ()),
    "explain-mood": (0, ["gate", "explain", "mood"], ("asks", "unknown")),
    "explain-topic": (0, ["gate", "explain", "topic"], ("asks", "unknown")),
    "diff": (0, ["diff", "mood@2", "mood@3"], ("note",)),
    "gc": (0, ["gc", "--keep", "1", "--grace", "0"], ("why", "reason")),
    "run-mood": (0, ["run", "mood"], ("reason",)),
    "run-topic": (4, ["run", "topic"], ("reason",)),
    "import": (0, ["import", "data/prompt.npy", "--task", "mood"], ("reason",)),
}

# What decides that something is made anew, as it stood when the project was written. Each was raised since, on purpose.
VERSIONS = {
    "ptpipeline.tuning.key.ENGINE_VERSION": 2,
    "ptpipeline.evaluation.key.SCORING_VERSION": 2,
    "ptpipeline.data.sources.INGEST_VERSION": 2,
}

ROW = "the was story and poor was scene"  # of mood's training rows
TEXTS = ["a lovely film", "dull plot was awful", "the story was good and fine", "poor scene"]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `ptp sign`: in those days prompts alone were signed, and now who trusts a key asks for more."""
    folder = tmp_path_factory.mktemp("golden") / "signed"
    shutil.copytree(FOLDER / "project", folder)
    product.restore_times(folder)
    key = Ed25519PrivateKey.from_private_bytes(inputs.SIGNING_KEY)
    encoded = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "signing.pem").write_bytes(encoded)
    (folder / "signing.pem").chmod(0o600)
    with (folder / "trusted.pem").open("ab") as trusted:
        trusted.write(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.MonkeyPatch.context() as patch:  # by a key that is added, as docs/signing.md says
        enter(folder, patch)
        for task in ("mood", "topic"):
            assert product.ptp("sign", task)[0] == 0
    return folder


@pytest.fixture
def project(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, as the present folder; only what the key of those days signed is read."""
    folder = tmp_path / "copy"
    shutil.copytree(signed, folder)
    (folder / "row.txt").write_text(ROW)
    enter(folder, monkeypatch)
    return folder


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make the folder the present one, and let the settings name what it holds."""
    for name in product.settings_names():
        patch.delenv(name, raising=False)
    for name, value in {
        "PTP_HOME": "home",
        "PTP_TASKS": "tasks",
        "PTP_DTYPE": "float32",
        "PTP_SIGNING_KEY": "signing.pem",
        "PTP_TRUSTED_KEYS": "trusted.pem",
    }.items():
        patch.setenv(name, value)
    patch.chdir(folder)


@pytest.fixture
def in_those_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys by the versions of the day when the project was written: no other part of a key moved."""
    for name, version in VERSIONS.items():
        monkeypatch.setattr(name, version)


@pytest.mark.usefixtures("in_those_days")
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_answers_as_before(name: str, project: Path) -> None:
    code, arguments, words = VERBS[name]
    assert_same(said(code, *arguments, words=words), said_before(name, words))


@pytest.mark.parametrize("reference", ["mood", "mood@1", "mood@3", "topic@staging", "topic@2"])
def test_the_same_version_predicts_the_same(reference: str, project: Path) -> None:
    assert_same(said(0, "predict", reference, *TEXTS), pinned(f"answers/predict-{reference}.json"), tolerance=1e-3)


@pytest.mark.usefixtures("in_those_days")
@pytest.mark.parametrize(("name", "status"), [("mood", "unchanged"), ("topic", "no gain")])
def test_nothing_trains_anew(name: str, status: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, output = product.ptp("run", name, "--json")
    assert json.loads(output)["status"] == status
    assert "step 1/" not in capsys.readouterr().err
    assert said(0, "versions") == pinned("answers/versions.json")


def test_a_raised_version_makes_the_next_beside_the_old(project: Path) -> None:
    assert said(0, "run", "mood")[0]["version"] == 4
    assert [row["version"] for row in said(0, "versions") if row["task"] == "mood"] == [4, 3, 2, 1]


@pytest.mark.usefixtures("in_those_days")
@pytest.mark.parametrize(("name", "number"), [("mood", 2), ("topic", 1)])
def test_a_measurement_is_kept_under_the_same_keys(name: str, number: int, project: Path) -> None:
    report, columns = product.measured(name, number)
    found = {
        "evaluation": report.evaluation_key,
        "rows": report.rows_key,
        "baselines": report.baselines,
        "columns": columns,
        "scores": report.prompt.to_json(),
    }
    assert_same(found, pinned(f"answers/measured-{name}.json"), tolerance=1e-3)


@pytest.mark.parametrize("form", ["npy", "peft"])
def test_an_export_writes_the_same_files(form: str, project: Path) -> None:
    said(0, "export", "mood@2", "--format", form, "--to", "out")
    files = {path.name: path.read_bytes().replace(bytes(project), b"PROJECT") for path in sorted(Path("out").iterdir())}
    assert {name: hashlib.sha256(body).hexdigest() for name, body in files.items()} == pinned(
        f"answers/export-{form}.json"
    )


def test_doctor_names_the_same_damage(project: Path) -> None:
    for path in ("mood/aliases/production.json", "mood/versions/1.json", "topic/history/staging/000001.json"):
        (project / "home/store/prompts" / path).unlink()
    for path in (project / "home/store/prompts/topic").rglob("prompt.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    words = ("what", "expected", "found", "mend")
    assert said(4, "doctor", words=words) == said_before("damage", words)


def test_the_store_alone_gives_back_the_ledger(project: Path) -> None:
    (project / "home/ledger.db").unlink()
    said(0, "doctor", "--rebuild-ledger")
    known = ("task", "version", "digest", "bytes", "aliases")
    found, expected = (
        [{name: row[name] for name in known} for row in rows]
        for rows in (said(0, "versions"), pinned("answers/versions.json"))
    )
    assert found == expected
    assert [said(0, "history", "mood"), said(0, "history", "topic")] == [
        pinned("answers/history-mood.json"),
        pinned("answers/history-topic.json"),
    ]
    assert said(0, "release", "list") == pinned("answers/releases.json")


def said(code: int, *arguments: str, words: tuple[str, ...] = ()) -> Any:
    """The records that the verb printed."""
    found, output = product.ptp(*arguments, "--json")
    assert found == code, output
    return [without_words(json.loads(line), words) for line in output.splitlines()]


def said_before(name: str, words: tuple[str, ...]) -> Any:
    """The same of the day when the project was written."""
    return without_words(pinned(f"answers/{name}.json"), words)
