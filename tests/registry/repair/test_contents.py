"""When a verdict in the store became the newest on its prompt: as its dossiers say, and not after they were stored."""

import pytest

from benchmarks.fixtures.prompts import a_request, an_artifact, published
from ptpipeline.records.base import now
from ptpipeline.task.task import Task
from registry.listing import list_task
from registry.registry import Registry
from registry.repair.contents import Contents, read_contents
from registry.versions.dossier import Dossier, write_dossier


def contents(registry: Registry, task: Task) -> Contents:
    return read_contents(registry.store, list_task(registry.store, task.name))


def write(registry: Registry, task: Task, judged_at: str, commit: str) -> None:
    """Another dossier of the verdict on version 1, which says when that became the newest."""
    request = a_request(task, 1)
    publication = registry.ledger.publication(task.name, an_artifact(task, 1).digest)
    assert publication is not None
    known = publication.model_copy(update={"commit": commit})
    write_dossier(registry.store, Dossier(publication=known, report=None, verdict=request.verdict, judged_at=judged_at))


def test_no_verdict_is_newer_than_its_dossier(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    write(plain, task, "2999-01-01T00:00:00+00:00", "c0ffee")
    assert all(time < f"{now()[:10]}Z" for time in contents(plain, task).times.values())


@pytest.mark.parametrize(("one", "two"), [("2026-01-01", "2026-02-02"), ("2026-02-02", "2026-01-01")])
def test_of_two_dossiers_of_one_verdict_the_later_time_counts(plain: Registry, task: Task, one: str, two: str) -> None:
    published(plain, task, 1)
    for day, commit in ((one, "one"), (two, "two")):
        write(plain, task, f"{day}T00:00:00+00:00", commit)
    assert {*contents(plain, task).times.values()} == {"2026-02-02T00:00:00+00:00"}
