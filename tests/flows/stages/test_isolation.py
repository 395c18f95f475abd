"""What an error ends: its own tasks, and no others."""

import pytest

from benchmarks.fixtures.prompts import a_task
from flows.stages.chain import Mode, Night, hide_message, isolate, run
from flows.stages.context import Context, Selection
from ptpipeline.errors import DataError
from ptpipeline.task.task import Task


def test_a_failure_ends_its_own_tasks_alone() -> None:
    night = Night({}, {})
    mood, topic = a_task("mood"), a_task("topic")
    with isolate(night, [mood]):
        raise DataError("mood: no rows")
    with isolate(night, [topic]):
        pass
    assert night.errors == {"mood": "mood: no rows"}


def test_a_defect_is_told_by_its_place_and_not_by_a_message_that_may_quote_a_row() -> None:
    night = Night({}, {})
    with isolate(night, [a_task("mood")]):
        raise ValueError("a secret text")
    assert "secret" not in night.errors["mood"]
    assert "ValueError" in night.errors["mood"]


def test_a_defect_that_is_hidden_already_is_told_as_it_is() -> None:
    night = Night({}, {})
    hidden = hide_message(ValueError("a secret text"))
    with isolate(night, [a_task("mood")]):
        raise hidden
    assert night.errors == {"mood": str(hidden)}


def test_what_its_surroundings_lack_ends_a_task_with_that() -> None:
    night = Night({}, {})
    with isolate(night, [a_task("mood")]):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
    assert night.errors["mood"].startswith("the system gives this process no more memory")


def test_an_interrupt_is_no_failure_of_a_task() -> None:
    night = Night({}, {})
    with pytest.raises(KeyboardInterrupt), isolate(night, [a_task("mood")]):
        raise KeyboardInterrupt
    assert night.errors == {}


def sharing(name: str, shared: str | None) -> Task:
    """A task that starts from that shared prompt, of which there is none."""
    declared = a_task(name).model_dump(mode="json", exclude_unset=True)
    return Task.model_validate(declared | ({"tune": {"method": "multitask", "shared": shared}} if shared else {}))


def test_a_shared_prompt_that_fails_ends_the_tasks_that_start_from_it(context: Context) -> None:
    selection = Selection([sharing("mood", "common"), sharing("topic", None)], {"tone": "its file is broken"})
    night = run(context, selection, Mode(isolate=True))
    assert night.outcomes == {}
    assert list(night.errors) == ["tone", "mood", "topic"]
    assert "shared_prompts.yaml" in night.errors["mood"]
    assert "rows.csv: no such file" in night.errors["topic"]  # it went on to its own rows
