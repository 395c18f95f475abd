"""Results per row that somebody altered, or that rotted, decide nothing: they are measured again, or refused."""

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from flows.on_demand.diff import diff
from ptpipeline.data.parquet import read_table
from ptpipeline.errors import ArtifactError
from ptpipeline.evaluation.results import Results
from ptpipeline.records.reports import Report
from ptpipeline.records.versions import VersionRef
from registry.repair.doctor import examine
from tests.flows.conftest import NAME
from tests.flows.project import Project

FAILED = "failed: gain, champion"


def columns(body: bytes) -> dict[str, list[object]]:
    table: dict[str, list[object]] = read_table(body).to_pydict()
    return table


def forge(body: bytes) -> bytes:
    """Every row answered right."""
    table = columns(body)
    buffer = io.BytesIO()
    parquet.write_table(pa.table(table | {"predicted": table["label"]}), buffer)
    return buffer.getvalue()


def rot(body: bytes) -> bytes:
    """One flipped bit, after which the file still parses and says something else."""
    for at in range(4, len(body)):
        rotten = body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :]
        try:
            if columns(rotten) != columns(body):
                return rotten
        except Exception:  # noqa: BLE001  Arrow raises many kinds
            continue
    raise AssertionError("no bit of it rots unseen")


ALTERED: dict[str, Callable[[bytes], bytes]] = {
    "forged": forge,
    "rotten": rot,
    "truncated": lambda body: body[: len(body) // 2],
    "empty": lambda body: b"",
}


def results_of(project: Project, version: int) -> tuple[Report, Path]:
    """The newest report of a version, and the file with its results."""
    ledger = project.stages.registry.ledger
    report = ledger.report_of(NAME, ledger.version(NAME, version).digest)
    assert report is not None
    return report, project.folder / "store" / report.rows_key


def gate_anew(project: Project) -> None:
    """Let the next run ask the gate again, by a policy that is as good as the same."""
    project.edit("margin: 0.2}", "margin: 0.199}")


@pytest.fixture(scope="module")
def second_night(first_night: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose second candidate failed its gate against the first, which is in production. Copy it."""
    project = first_night.copy(tmp_path_factory.mktemp("second-night"))
    project.edit('" yes"}, steps: 10, batch_size: 8, learning_rate: 0.05', '" dull"}, steps: 10, learning_rate: 1.0e-9')
    project.edit("minimum: 0.7", "minimum: 0.0")
    outcome = project.run()
    assert outcome.delta is not None
    assert (outcome.verdict, outcome.delta < -0.1) == (FAILED, True)
    return project


@pytest.fixture
def failed(second_night: Project, tmp_path: Path) -> Project:
    """A copy of it for one test."""
    return second_night.copy(tmp_path)


@pytest.mark.parametrize("how", ALTERED)
def test_altered_results_of_a_failed_candidate_do_not_let_it_pass(failed: Project, how: str) -> None:
    report, path = results_of(failed, 2)
    before = path.read_bytes()
    path.write_bytes(ALTERED[how](before))
    found = [difference for difference in examine(failed.stages.registry) if report.rows_key in difference.what]
    assert [difference.kind for difference in found] == ["results"]
    gate_anew(failed)
    outcome = failed.run()
    assert outcome.verdict == FAILED
    assert failed.stages.registry.ledger.head(NAME, "production").version == 1  # type: ignore[union-attr]
    assert [line for line in failed.lines if "is measured again" in line and report.rows_key in line]
    assert path.read_bytes() == before
    assert examine(failed.stages.registry) == []


@pytest.mark.parametrize("whose", ["champion", "zero_shot", "majority"])
def test_altered_results_of_what_a_candidate_is_compared_with_are_measured_again(failed: Project, whose: str) -> None:
    report, path = results_of(failed, 1)
    if whose != "champion":
        baseline = failed.stages.registry.ledger.report(report.baselines[whose])
        assert baseline is not None
        path = failed.folder / "store" / baseline.rows_key
    before, outcome = path.read_bytes(), failed.run()
    path.write_bytes(path.read_bytes().replace(b"positive", b"negativ_"))
    assert path.read_bytes() != before
    gate_anew(failed)
    again = failed.run()
    assert (again.verdict, again.delta) == (outcome.verdict, outcome.delta)
    assert path.read_bytes() == before


def test_results_of_a_report_from_before_are_measured_again(failed: Project) -> None:
    ledger = failed.stages.registry.ledger
    report, path = results_of(failed, 2)
    ledger.save_report(report.model_copy(update={"rows_sha256": ""}))
    path.write_bytes(forge(path.read_bytes()))
    gate_anew(failed)
    assert failed.run().verdict == FAILED
    assert [line for line in failed.lines if "an older ptpipeline measured this" in line]
    assert results_of(failed, 2)[0].rows_sha256 == report.rows_sha256


def test_a_comparison_by_hand_reads_no_altered_results(failed: Project) -> None:
    versions = VersionRef(NAME, 1), VersionRef(NAME, 2)
    before = diff(failed.stages, *versions)
    _, path = results_of(failed, 2)
    path.write_bytes(forge(path.read_bytes()))
    assert diff(failed.stages, *versions) == before


def test_what_cannot_be_measured_again_is_refused_by_name(failed: Project) -> None:
    report, path = results_of(failed, 2)
    path.write_bytes(forge(path.read_bytes()))
    with pytest.raises(ArtifactError, match=rf"{report.rows_key}: .* the results were altered"):
        Results.of(failed.stages.registry.store, report)
    prompt = failed.folder / f"store/prompts/{NAME}/{report.digest}/prompt.safetensors"
    prompt.write_bytes(prompt.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"prompt.safetensors: .* truncated or altered"):
        diff(failed.stages, VersionRef(NAME, 1), VersionRef(NAME, 2))
