"""What a run shows while it works: each phase by its name."""

from pathlib import Path

import torch

from flows.stages.chain import run_task
from ptpipeline.progress import Lines, Standing
from ptpipeline.tuning.tracker import NoTracker
from tests.flows.project import Project

NAME = "tiny-sentiment"


class Often(Lines):
    """Looks at the work so often that no phase is too short to be seen."""

    def __init__(self) -> None:
        self.seen: list[Standing] = []
        super().__init__(print, 0.001)

    def show(self, standing: Standing) -> None:
        self.seen.append(standing)


class Runs(NoTracker):
    """A tracker that has one run, and keeps what is recorded in it."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str | None, Standing]] = []

    def start(self, *_: object) -> str:
        return "run"

    def log_standing(self, run: str | None, standing: Standing) -> None:
        self.recorded.append((run, standing))


def test_every_phase_of_a_night_is_shown(tmp_path: Path) -> None:
    project = Project(tmp_path, (NAME,))
    context, display = project.stages, Often()
    context.display = display
    context.__dict__["tracker"] = runs = Runs()
    run_task(context, project.task())
    counted = {(standing.phase, standing.unit) for standing in display.seen if standing.total}
    evaluated = {f"{NAME}: test rows: {kind}" for kind in ("prompt", "zero_shot")}
    probed = {f"{NAME}: {probe}" for probe in ("robustness", "privacy")}
    assert {("training", "steps"), ("training: dev", "rows")} <= counted
    assert {(phase, "rows") for phase in evaluated | probed} <= counted
    assert {standing.total for standing in display.seen if standing.phase == "training"} <= {0, 10}
    assert any(run == "run" and standing.phase.startswith(f"{NAME}: ") for run, standing in runs.recorded)
    assert len(runs.recorded) < len(display.seen) / 4


def test_a_second_version_shows_the_champion_that_is_measured_for_it(tmp_path: Path) -> None:
    project = Project(tmp_path, (NAME,))
    project.run()
    project.edit("num_virtual_tokens: 4", "num_virtual_tokens: 5")
    project.settings = project.settings.model_copy(update={"dtype": "bfloat16"})
    context, display = project.stages, Often()
    context.display = display
    with torch.backends.mkldnn.flags(enabled=False):  # oneDNN refuses bfloat16 under older instructions
        run_task(context, project.task())
    assert f"{NAME}: comparison: test rows: prompt" in {standing.phase for standing in display.seen}
