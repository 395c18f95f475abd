"""The same command once more: killed at any named step and run again, `ptp` ends with 0 and readers see what the ledger
says. Nothing else runs: no reconcile, no Prefect, no MLflow. A reader has the store alone.
"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from safetensors.numpy import load

import flows
import ptpipeline
import registry
from benchmarks.chaos.rounds import find_steps
from benchmarks.fixtures.prompts import a_task, an_artifact, published
from flows.cli import main
from flows.stages.ingest import ingest
from flows.stages.judge import evaluate
from flows.stages.plan import plan
from flows.stages.train import train
from ptpipeline.errors import NotFound
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import manifest_key
from registry.failpoints import watch
from registry.ledger import tombstone
from registry.ledger.ledger import Ledger, Move
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.flows.cli.test_cli import ptp
from tests.flows.project import Project
from tests.processes import in_child

ME = Cause("me", "because")
MOOD, TOPIC, TINY = "mood", "topic", "tiny-sentiment"
TOMBSTONE_SECONDS = 2.0  # longer than a repeat takes to get there

PUBLISHED = ("remembered", "shown", "numbered", "named", "verified")
PROJECTED = ("promotion checked", "promotion committed", "history written", "pointer written")
FOLLOWED = ("history written", "pointer written", "history written 2", "pointer written 2")


class Command(NamedTuple):
    """What a person types, what is there before, at which steps it is killed (the second time if it ends with 2), and
    the version that production of each task names in the end.
    """

    arguments: tuple[str, ...]
    prepare: Callable[[Registry], object]
    steps: tuple[str, ...]
    production: dict[str, int]


def promoted(registry: Registry, *versions: int, task: str = MOOD) -> None:
    """Each of these versions was published against the one before, and promoted to production."""
    for number in versions:
        head = registry.ledger.head(task, "production")
        assert published(registry, a_task(task), number, head.digest if head else None) == number
        promote(registry, a_task(task), number, ME)


def candidate_of_both(registry: Registry) -> None:
    for task in (MOOD, TOPIC):
        promoted(registry, 1, task=task)
        assert published(registry, a_task(task), 2, an_artifact(a_task(task), 1).digest) == 2


def released(registry: Registry) -> None:
    candidate_of_both(registry)
    environment = environment_of(Path(registry.store.url.removeprefix("file://")).parent)
    release = ("release", "promote", "spring", f"{MOOD}@2", f"{TOPIC}@2", "--reason", "new base")
    assert ptp(environment, *release).returncode == 0


def behind(registry: Registry) -> None:
    """The ledger moved on, and the store does not show it."""
    candidate_of_both(registry)
    registry.ledger.append(Move(task=MOOD, alias="production", version=2, actor="me", reason="why", expected=1))


def lost(registry: Registry) -> None:
    """The ledger is gone."""
    candidate_of_both(registry)
    registry.ledger.close()
    for path in Path(registry.ledger.url.removeprefix("sqlite:///")).parent.glob("ledger.db*"):
        path.unlink()


def many_candidates(registry: Registry) -> None:
    promoted(registry, 1)
    for seed in (2, 3, 4):
        published(registry, a_task(MOOD), seed, an_artifact(a_task(MOOD), 1).digest)


COMMANDS = {
    "promote": Command(
        ("promote", f"{MOOD}@2", "--reason", "better"), candidate_of_both, PROJECTED, {MOOD: 2, TOPIC: 1}
    ),
    "rollback": Command(
        ("rollback", MOOD, "--reason", "worse"),
        lambda registry: promoted(registry, 1, 2, 3),
        ("promotion committed", "history written", "pointer written"),
        {MOOD: 2},
    ),
    "release promote": Command(
        ("release", "promote", "spring", f"{MOOD}@2", f"{TOPIC}@2", "--reason", "new base"),
        candidate_of_both,
        ("promotion checked", "promotion checked 2", "release committed", *FOLLOWED),
        {MOOD: 2, TOPIC: 2},
    ),
    "release rollback": Command(
        ("release", "rollback", "spring", "--reason", "latency"),
        released,
        ("release committed", *FOLLOWED),
        {MOOD: 1, TOPIC: 1},
    ),
    "reconcile": Command(("reconcile",), behind, ("history written", "pointer written"), {MOOD: 2, TOPIC: 1}),
    "doctor --fix": Command(("doctor", "--fix"), behind, ("history written", "pointer written"), {MOOD: 2, TOPIC: 1}),
    "doctor --rebuild-ledger": Command(
        ("doctor", "--rebuild-ledger"),
        lost,
        ("rebuild dossiers taken", "rebuild dossiers taken 2", "rebuild task taken", "rebuild task taken 2"),
        {MOOD: 1, TOPIC: 1},
    ),
    "gc": Command(
        ("gc", "--keep", "1", "--grace", "0", "--apply"),
        many_candidates,
        ("collect buried", "collect manifest deleted", "collect deleted", "collect buried 2", "collect deleted 2"),
        {MOOD: 1},
    ),
}
CASES = [(name, step) for name, command in COMMANDS.items() for step in command.steps]

RUN = ("run", TINY)
TRAINING_STEPS = ("publish intended", "publish staged", "gang member staged", "gang remembered")
RUN_STEPS = (*TRAINING_STEPS, *(f"publish {step}" for step in PUBLISHED), *PROJECTED)
IMPORT_STEPS = ("publish intended", "publish numbered", "promotion committed")

IN_MLFLOW = {
    "alias attempted",
    "alias moved",
    "alias written",
    "alias described",
}  # tests/registry/versions/test_killed_alias.py


def environment_of(folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PTP_", "AWS_"))}
    return clean | {
        "PTP_HOME": str(folder / "home"),
        "PTP_TASKS": str(folder / "tasks"),
        "PTP_STORE": f"file://{folder / 'store'}",
        "PTP_LEDGER": f"sqlite:///{folder / 'ledger.db'}",
        "PTP_DTYPE": "float32",
    }


def kill_at(environment: dict[str, str], arguments: tuple[str, ...], step: str) -> None:
    """Run `ptp` in a child that is killed as soon as it reaches the step."""
    name, _, time = step.rpartition(" ") if step.endswith(" 2") else (step, "", "1")
    left = [int(time)]

    def reached(passed: str) -> None:
        left[0] -= passed == name
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        os.environ.clear()
        os.environ.update(environment)
        watch(reached)
        main(arguments)

    in_child(run, ends=-signal.SIGKILL)


def check_readers(folder: Path) -> dict[str, int]:
    """Compare what a reader of the store finds with the ledger; return what production of each task names."""
    store, ledger = FolderStore(folder / "store"), Ledger(f"sqlite:///{folder / 'ledger.db'}")
    for head in ledger.heads():
        read = resolve(store, f"{head.task}@{head.alias}")
        assert (read.number, read.artifact.digest) == (head.version, head.digest)
    for version in ledger.versions(limit=None):
        if version.collected:
            assert not store.exists(manifest_key(version.task, version.digest))
            with pytest.raises(NotFound, match="garbage collection deleted it"):
                resolve(store, f"{version.task}@{version.number}")
        else:
            assert resolve(store, f"{version.task}@{version.number}").artifact.digest == version.digest
    return {head.task: head.version for head in ledger.heads() if head.alias == "production"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a command's project as it is before the command; made once for each."""
    made: dict[str, Path] = {}

    def prepare(name: str) -> Path:
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp("prepared")
            (folder / "tasks").mkdir()
            for task in (MOOD, TOPIC):
                declared = a_task(task).model_dump(mode="json", exclude_unset=True)
                (folder / "tasks" / f"{task}.yaml").write_text(yaml.safe_dump(declared))
            ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
            COMMANDS[name].prepare(Registry(ledger, FolderStore(folder / "store")))
            ledger.close()
        return made[name]

    return prepare


@pytest.mark.parametrize(("name", "step"), CASES)
def test_a_killed_command_is_finished_by_its_repeat(
    prepared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", TOMBSTONE_SECONDS)
    folder, command = tmp_path / "project", COMMANDS[name]
    shutil.copytree(prepared(name), folder)
    kill_at(environment_of(folder), command.arguments, step)
    done = ptp(environment_of(folder), *command.arguments)
    assert done.returncode == 0, done.stderr
    assert check_readers(folder) == command.production


# ---------------------------------------------------------------- runs and imports


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose task is trained and measured, and not registered; beside it the prompt as an array."""
    project = Project(tmp_path_factory.mktemp("trained"), (TINY,))
    context, task = project.stages, project.task()
    snapshot = ingest(context, task)
    tuned = train(context, [plan(context, task, snapshot)])[TINY]
    assert not isinstance(tuned, str)
    evaluate(context, task, tuned, snapshot.digest)
    tensors = load(read_artifact(context.registry.store, TINY, tuned.digest).tensors)
    np.save(project.folder / "prompt.npy", tensors["embeddings"].astype(np.float32))
    return project


@pytest.mark.parametrize("step", RUN_STEPS)
def test_a_killed_run_is_finished_by_its_repeat(trained: Project, tmp_path: Path, step: str) -> None:
    folder = tmp_path / "project"
    if step in TRAINING_STEPS:
        Project(folder, (TINY,))
    else:
        trained.copy(folder)
    kill_at(environment_of(folder), RUN, step)
    done = ptp(environment_of(folder), *RUN)
    assert done.returncode == 0, done.stderr
    assert check_readers(folder) == {TINY: 1}


@pytest.mark.parametrize("step", IMPORT_STEPS)
def test_a_killed_import_is_finished_by_its_repeat(trained: Project, tmp_path: Path, step: str) -> None:
    folder = tmp_path / "project"
    trained.copy(folder)
    command = ("import", str(folder / "prompt.npy"), "--task", TINY)
    kill_at(environment_of(folder), command, step)
    done = ptp(environment_of(folder), *command)
    assert done.returncode == 0, done.stderr
    assert check_readers(folder) == {TINY: 1}


def test_every_step_is_one_at_which_a_command_is_killed() -> None:
    killed = {step.removesuffix(" 2") for _, step in CASES} | {*RUN_STEPS, *IMPORT_STEPS}
    assert killed | IN_MLFLOW == find_steps(flows, registry, ptpipeline)
