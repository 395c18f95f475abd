"""Nights of one registry on machines that compute in different types: neither disturbs the other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.on_demand.diff import diff
from flows.stages.ingest import ingest
from ptpipeline.evaluation.key import evaluation_key
from ptpipeline.evaluation.results import Results
from ptpipeline.models.base import prepare_base
from ptpipeline.models.compute_type import Speed, describe_product, locate_speed
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import VersionRef
from registry.ledger.looks import count_looks
from tests.flows.project import Project

NAME = "tiny-sentiment"
PLAIN = "num_virtual_tokens: 4"


@pytest.fixture(autouse=True)
def plain_bfloat16() -> Iterator[None]:
    """Multiply bfloat16 without oneDNN, which refuses it if it is limited to instructions that know no bfloat16."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path, (NAME,))
    made.edit("champion: {rule: non_inferiority, margin: 0.2}", "champion: {rule: non_inferiority, margin: 0.5}")
    return made


def move_to(project: Project, dtype: str) -> None:
    """Let the next night run on a machine that computes in that type."""
    project.settings = project.settings.model_copy(update={"dtype": dtype})


def looks(project: Project) -> int:
    context = project.stages
    return count_looks(context.registry.ledger, NAME, context.row_ids(ingest(context, project.task()), "test"))


def verdicts(project: Project, number: int) -> list[Verdict]:
    ledger = project.stages.registry.ledger
    return ledger.verdicts(NAME, ledger.version(NAME, number).digest)


def report_in(project: Project, number: int, dtype: str) -> Report | None:
    """The report of a version on today's test rows in that type."""
    context = project.stages
    digest, test = context.registry.ledger.version(NAME, number).digest, ingest(context, project.task()).test
    return context.registry.ledger.report(evaluation_key(digest, test.digest, dtype, project.task().hard_prompt))


@pytest.mark.parametrize("types", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_night_in_another_type_repeats_nothing(project: Project, types: tuple[str, str]) -> None:
    move_to(project, types[0])
    assert project.run().status == "promoted"
    spent = looks(project)
    move_to(project, types[1])
    again = project.run()
    assert (again.version, again.status, project.trained) == (1, "unchanged", False)
    assert looks(project) == spent == 1
    assert report_in(project, 1, types[1]) is None
    assert report_in(project, 1, types[0]) is not None


def test_a_refused_candidate_gets_no_second_chance_in_another_type(project: Project) -> None:
    project.edit("champion: {rule: non_inferiority, margin: 0.5}", "champion: {rule: superiority}")
    assert project.run().status == "promoted"
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    refused = project.run()
    assert (refused.version, refused.status) == (2, "gate failed")
    before = verdicts(project, 2)
    move_to(project, "bfloat16")
    assert project.run().status == "gate failed"
    assert verdicts(project, 2) == before
    assert looks(project) == 2


@pytest.mark.parametrize("types", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_the_champion_is_measured_in_the_type_of_the_challenger(project: Project, types: tuple[str, str]) -> None:
    move_to(project, types[0])
    assert project.run().status == "promoted"
    move_to(project, types[1])
    project.edit(PLAIN, "num_virtual_tokens: 5")
    challenger = project.run()
    assert (challenger.version, challenger.status) == (2, "promoted")
    (verdict,) = verdicts(project, 2)
    assert verdict.comparison is not None
    assert looks(project) == 2
    champion, ours = report_in(project, 1, types[1]), report_in(project, 2, types[1])
    assert champion is not None
    assert ours is not None
    assert report_in(project, 2, types[0]) is None
    store = project.stages.registry.store
    theirs, own = Results.of(store, champion), Results.of(store, ours)
    difference = sum(own.row_scores(project.task(), own.ids)) - sum(theirs.row_scores(project.task(), own.ids))
    assert verdict.comparison.difference == pytest.approx(difference / len(own.ids))


def test_after_both_types_the_nights_go_on_quietly(project: Project) -> None:
    for dtype, tokens in (("float32", "4"), ("bfloat16", "5")):
        move_to(project, dtype)
        project.edit(PLAIN, f"num_virtual_tokens: {tokens}") if tokens != "4" else None
        project.run()
    for dtype in ("float32", "bfloat16"):
        move_to(project, dtype)
        assert project.run().status == "unchanged"
        assert not project.trained
        assert not any("computes in" in line for line in project.lines)
    assert looks(project) == 2


def test_what_was_lost_is_measured_again_in_its_own_type(project: Project) -> None:
    assert project.run().status == "promoted"
    report = report_in(project, 1, "float32")
    assert report is not None
    project.stages.registry.store.delete(report.rows_key)
    move_to(project, "bfloat16")
    project.run()
    mended = report_in(project, 1, "float32")
    assert mended is not None
    assert Results.of(project.stages.registry.store, mended).ids
    assert report_in(project, 1, "bfloat16") is None


def test_two_versions_differ_by_what_one_type_says(project: Project) -> None:
    for dtype, tokens in (("float32", "4"), ("bfloat16", "5")):
        move_to(project, dtype)
        project.edit(PLAIN, f"num_virtual_tokens: {tokens}") if tokens != "4" else None
        project.run()
    diff(project.stages, VersionRef(NAME, 1), VersionRef(NAME, 2))
    assert report_in(project, 2, "float32") is not None


@pytest.mark.parametrize(("rates", "expected"), [((1.0, 2.0), "bfloat16"), ((2.0, 1.0), "float32")])
def test_a_night_takes_what_was_measured_and_says_so_once(
    project: Project, rates: tuple[float, float], expected: str
) -> None:
    move_to(project, "auto")
    product = describe_product(prepare_base("tiny", project.settings))
    path = locate_speed(project.settings.home, product)
    path.parent.mkdir(parents=True)
    path.write_text(Speed(product=product, float32=rates[0], bfloat16=rates[1]).model_dump_json())
    project.run()
    assert [line for line in project.lines if "computes in" in line] == [
        f"tiny: computes in {expected}: a product of [512, {product.inputs}] by [{product.outputs}, {product.inputs}] "
        f"runs at {rates[0]:.0f} GFLOP/s in float32 and {rates[1]:.0f} in bfloat16 ({product.processor}, "
        f"threads: {product.threads}, torch {torch.__version__})"
    ]
    assert report_in(project, 1, expected) is not None
