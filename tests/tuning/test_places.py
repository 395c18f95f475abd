"""Who trains in the next step: the queue before the places of a gang, and the trials that a search ends early."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import nn

from flows.stages.ingest import ingest
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, PrefixCache, SoftPrompt, count_virtual_tokens, list_tensors
from ptpipeline.records.prompts import CurvePoint, Dropped
from ptpipeline.storage import FolderStore
from ptpipeline.task.recipe import Rung
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.loop import Gang, run_gang
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.places import drop_hopeless, fill_places, split_places
from ptpipeline.tuning.tracker import NoTracker, RunStatus
from ptpipeline.tuning.tune import TaskData, build_job, choose_member
from tests.flows.project import Project
from tests.models.families import family
from tests.tuning.jobs import SECRET, job
from tests.tuning.test_checkpoint import EVERY_STEP, Dying, Killed, assert_same


@pytest.fixture(scope="module")
def base() -> CausalBase:
    return family("llama")  # float64


@pytest.fixture
def two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of three virtual tokens, as `job` makes them, fit into one step."""
    monkeypatch.setattr(FrozenBase, "prompt_tokens", 6)


class Events(NoTracker):
    """Remembers in which order runs begin, log a step, and end."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def start(self, task: str, params: object, tags: object, run: str | None) -> str | None:
        self.seen.append(f"{task} begins")
        return task

    def log_point(self, run: str | None, point: CurvePoint) -> None:
        self.seen.append(f"{run} at {point.step}")

    def finish(self, run: str | None, status: RunStatus) -> None:
        self.seen.append(f"{run} {status}")


def run(base: FrozenBase, wanted: Sequence[Job], tracker: NoTracker | None = None) -> Gang:
    return run_gang(base, wanted, tracker or NoTracker(), lambda line: None)


def prompt(member: Member) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([tensor.flatten() for tensor in list_tensors(member.parameterisation.build_prompt())])


# ---------------------------------------------------------------- the queue


def mixed(base: CausalBase) -> list[Job]:
    """Five jobs, of which the first ends by its last step, the second by early stop and the third by a failure."""
    return [
        job(base, "short", steps=2),
        job(base, "stops", seed=3, learning_rate=1e-12, steps=30, patience=1),
        job(base, "breaks", seed=2, learning_rate=1e300, steps=9),
        job(base, "late", seed=4, steps=5, method="p_tuning", encoder_width=8, optimizer="adafactor"),
        job(base, "last", seed=5, steps=3),
    ]


@pytest.mark.usefixtures("two_places")
def test_a_waiting_job_joins_at_the_step_after_a_member_ended(base: CausalBase) -> None:
    """`short` ends at step 2, so `waits` takes the steps 3 to 6 of the gang, beside the rest of `long`."""
    events = Events()
    gang = run(base, [job(base, "short", steps=2), job(base, "long", steps=6), job(base, "waits", steps=4)], events)
    assert gang.clock.steps == 6
    begun = events.seen.index("waits begins")
    assert events.seen.index("short FINISHED") < begun < events.seen.index("long at 4")
    assert events.seen.count("long begins") == 1


@pytest.mark.usefixtures("two_places")
def test_the_place_of_a_failed_member_is_taken(base: CausalBase) -> None:
    events = Events()
    gang = run(base, [job(base, "breaks", learning_rate=1e300), job(base, "long"), job(base, "waits", steps=4)], events)
    assert gang.members[0].error is not None
    assert events.seen.index("breaks FAILED") < events.seen.index("waits begins") < events.seen.index("long at 4")
    assert [member.step for member in gang.members[1:]] == [6, 4]


@pytest.mark.usefixtures("two_places")
def test_the_place_of_a_member_that_stops_early_is_taken(base: CausalBase) -> None:
    stops = job(base, "stops", seed=3, learning_rate=1e-12, steps=40, patience=1)
    gang = run(base, [stops, job(base, "long", steps=12), job(base, "waits", steps=8)])
    assert gang.members[0].stopped_early
    assert gang.clock.steps == 12


@pytest.mark.usefixtures("two_places")
def test_whoever_joins_leaves_each_member_at_the_numbers_of_its_solo_run(base: CausalBase) -> None:
    wanted = mixed(base)
    for together, one in zip(run(base, wanted).members, wanted, strict=True):
        alone = run(base, [one]).members[0]
        assert (together.step, together.stopped_early) == (alone.step, alone.stopped_early)
        assert (together.best_step, together.best_dev) == (alone.best_step, alone.best_dev)
        assert [point.step for point in together.curve] == [point.step for point in alone.curve]
        assert (together.error is None) == (alone.error is None)
        if together.error is None:
            torch.testing.assert_close(prompt(together), prompt(alone), rtol=1e-9, atol=1e-11)


class Counting(CausalBase):
    """Remembers how many virtual tokens, padded, each prompt pass computes."""

    widest = 0

    def compute_prefix(self, prompts: Sequence[SoftPrompt]) -> PrefixCache:
        padded = len(prompts) * max(map(count_virtual_tokens, prompts))
        type(self).widest = max(self.widest, padded)
        return super().compute_prefix(prompts)


def test_no_prompt_pass_holds_more_tokens_than_the_places(base: CausalBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the self-check, in a step and in a dev evaluation."""
    monkeypatch.setattr(FrozenBase, "prompt_tokens", 12)
    counting = Counting(base.model, base.tokenizer, base.ref, torch.float64, 128)
    run(counting, [job(base, str(count), seed=count, num_virtual_tokens=count) for count in (1, 6, 5, 2, 2, 2, 9)])
    assert counting.widest == 12


class Packing(CausalBase):
    """Remembers the prompts whose rows each training pass holds."""

    passes: ClassVar[list[set[int]]] = []

    def compute_states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.passes.append({row.prompt for row in inputs})
        return super().compute_states(cache, inputs)


def test_rows_are_packed_by_tokens_whichever_member_they_belong_to(base: CausalBase) -> None:
    """All rows of three members fit into one pass: one for the self-check, and one for each step."""
    packing = Packing(base.model, base.tokenizer, base.ref, torch.float64, 128)
    run(packing, [job(base, str(size), seed=size, batch_size=size, steps=2, warmup_steps=1) for size in (1, 3, 5)])
    assert packing.passes == [{0, 1, 2}] * 3


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([1024], [[0]]),
        ([2000, 1], [[0], [1]]),
        ([512, 512, 512], [[0, 1], [2]]),
        ([16] * 64, [list(range(64))]),
        ([100, 341, 341, 342, 1], [[0, 1, 2], [3, 4]]),
        ([1, 600, 400], [[0], [1], [2]]),
    ],
)
def test_places_are_bound_by_padded_tokens(lengths: list[int], expected: list[list[int]]) -> None:
    assert [list(found) for found in split_places(lengths, 1024)] == expected


@pytest.mark.usefixtures("two_places")
def test_sources_of_one_shared_prompt_step_together(base: CausalBase) -> None:
    first = job(base, "one", method="multitask", shared="common")
    shared = nn.Parameter(torch.as_tensor(first.initial).clone())
    sources = [
        one._replace(initial=shared.detach().clone(), shared=shared)
        for one in (first, *(job(base, name, method="multitask", shared="common") for name in ("two", "three")))
    ]
    members = Member.start_gang([job(base, "alone"), *sources])
    assert fill_places(members, base.prompt_tokens) == members[:1]
    members[0].step = 6
    assert fill_places(members, base.prompt_tokens) == members[1:]


@pytest.mark.usefixtures("two_places")
@pytest.mark.parametrize("puts", [1, 2, 5, 9])
def test_a_gang_with_a_queue_resumes_who_was_in_and_who_waited(base: CausalBase, tmp_path: Path, puts: int) -> None:
    whole, lines = run(base, mixed(base)), list[str]()
    try:
        run_gang(
            base, mixed(base), NoTracker(), lambda line: None, Checkpoints(Dying(tmp_path, puts), EVERY_STEP, SECRET)
        )
    except Killed:
        checkpoints = Checkpoints(FolderStore(tmp_path), EVERY_STEP, SECRET)
        resumed = run_gang(base, mixed(base), NoTracker(), lines.append, checkpoints)
        assert "resumes from a checkpoint" in lines[0]
        assert resumed.clock.steps == whole.clock.steps
        for ours, theirs in zip(resumed.members, whole.members, strict=True):
            assert_same(ours, theirs)
    else:
        assert puts > whole.clock.steps


def queued(base: CausalBase) -> list[Job]:
    return [job(base, str(seed), seed=seed, steps=8 + 2 * seed, eval_every=4, patience=99) for seed in range(5)]


TRAINING = """
import sys
from pathlib import Path
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.storage import FolderStore
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import SECRET
from tests.tuning.test_places import queued

FrozenBase.prompt_tokens = 6
base = family("llama")
report = lambda line: print(line, flush=True)
run_gang(base, queued(base), NoTracker(), report, Checkpoints(FolderStore(Path(sys.argv[1])), 0, SECRET))
"""


@pytest.mark.usefixtures("two_places")
@pytest.mark.soak  # tests/flows/stages/test_killed.py kills one without a queue
def test_a_process_that_is_killed_with_a_queue_ends_at_the_same_bits(base: CausalBase, tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", TRAINING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("2: step 4/"):  # 0 has ended, 1 and 2 are in, 3 and 4 wait
            break
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    killed.stdout.close()
    whole, lines = run(base, queued(base)), list[str]()
    checkpoints = Checkpoints(FolderStore(tmp_path), EVERY_STEP, SECRET)
    resumed = run_gang(base, queued(base), NoTracker(), lines.append, checkpoints)
    assert "resumes from a checkpoint: 0 at step 8" in lines[0]
    assert "4 at step 0" in lines[0]
    for ours, theirs in zip(resumed.members, whole.members, strict=True):
        assert_same(ours, theirs)


# ---------------------------------------------------------------- halving


def trials(base: CausalBase, rungs: Sequence[Rung], devs: Sequence[float], step: int) -> list[Member]:
    """Members of one search after `step` steps, with these best dev values."""
    members = [
        Member.of(job(base, "search", seed=seed, steps=20)._replace(name=f"search/{seed}", rungs=tuple(rungs)))
        for seed in range(len(devs))
    ]
    for member, dev in zip(members, devs, strict=True):
        member.step, member.best_dev = step, dev
    return members


def test_the_worst_trials_end_at_a_rung_with_what_they_were_compared_with(base: CausalBase) -> None:
    members = trials(base, [Rung(4, 2)], [0.5, 0.9, 0.6, 0.7], 4)
    assert drop_hopeless(members) == [members[0], members[2]]
    assert members[0].dropped == Dropped(step=4, dev=0.5, least=0.7)
    assert fill_places(members, 1024) == [members[1], members[3]]


def test_trials_that_tie_with_the_last_that_goes_on_go_on_too(base: CausalBase) -> None:
    members = trials(base, [Rung(4, 1)], [0.7, 0.6, 0.7], 4)
    assert drop_hopeless(members) == [members[1]]


def test_nothing_is_compared_before_all_have_reached_the_rung(base: CausalBase) -> None:
    members = trials(base, [Rung(4, 1)], [0.5, 0.9, 0.6], 4)
    members[1].step = 3
    assert drop_hopeless(members) == []
    assert fill_places(members, 1024) == [members[1]]


def test_a_trial_that_stopped_by_itself_is_compared_and_one_that_failed_is_not(base: CausalBase) -> None:
    members = trials(base, [Rung(4, 1)], [0.5, 0.9, 0.99], 4)
    members[1].step, members[1].stale = 3, 99
    members[2].error = RuntimeError("it diverged")  # type: ignore[assignment]
    assert drop_hopeless(members) == [members[0]]
    assert members[0].dropped == Dropped(step=4, dev=0.5, least=0.9)


def test_a_rung_is_decided_once(base: CausalBase) -> None:
    """Two that tie go on; if one has a place and gains, the other, which still waits for one, is not compared again."""
    members = trials(base, [Rung(4, 1), Rung(8, 1)], [0.8, 0.8, 0.7], 4)
    assert drop_hopeless(members) == [members[2]]
    assert drop_hopeless(members) == []
    members[0].step, members[0].best_dev = 6, 0.9
    assert drop_hopeless(members) == []
    members[0].step = members[1].step = 8
    assert drop_hopeless(members) == [members[1]]


def test_who_waits_for_a_place_behind_a_rung_is_not_compared_with_who_has_trained_to_the_end(base: CausalBase) -> None:
    members = trials(base, [Rung(4, 1)], [0.8, 0.8, 0.7], 4)
    assert drop_hopeless(members) == [members[2]]
    members[0].step, members[0].best_dev = 20, 0.9  # it had the only place
    assert drop_hopeless(members) == []
    assert fill_places(members, 3) == [members[1]]


def test_tasks_and_plain_jobs_are_no_rivals(base: CausalBase) -> None:
    members = trials(base, [Rung(4, 1)], [0.5], 4)
    other = Member.of(job(base, "other")._replace(rungs=(Rung(4, 1),)))
    plain = Member.of(job(base, "search"))
    for member in (other, plain):
        member.step, member.best_dev = 4, 0.9
    assert drop_hopeless([*members, other, plain]) == []


class Searched(NamedTuple):
    base: FrozenBase
    first: Job

    def jobs(self, *rungs: Rung) -> list[Job]:
        """Five trials, of which the second answers all dev rows at step 4, and no other at any."""
        return [
            self.first._replace(
                name=f"{self.first.name}/rate {rate}",
                tune=self.first.tune.model_copy(update={"learning_rate": rate}),
                rungs=rungs,
            )
            for rate in (1e-9, 0.03, 1e-8, 0.01, 1e-7)
        ]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """The tiny base that was taught, and a job on its task; by a rate near zero it learns nothing."""
    project = Project(tmp_path_factory.mktemp("search"), ("tiny-sentiment",))
    stages, task = project.stages, project.task()
    base = stages.engine("tiny").base
    tune = task.tune.model_copy(
        update={"init": "sampled_vocab", "steps": 12, "eval_every": 2, "warmup_steps": 1, "patience": 99}
    )
    return Searched(base, build_job(base, TaskData(task, ingest(stages, task)), tune, stages.registry.store))


@pytest.mark.parametrize("tokens", [8, 1024])
def test_halving_keeps_the_winner_and_its_numbers(
    searched: Searched, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """Whether two trials fit into one step or all of them."""
    monkeypatch.setattr(FrozenBase, "prompt_tokens", tokens)
    full = run(searched.base, searched.jobs()).members
    halved = run(searched.base, searched.jobs(Rung(2, 3), Rung(4, 1))).members
    best, kept = (choose_member(searched.first.tune, members) for members in (full, halved))
    assert kept.job.name == best.job.name == "tiny-sentiment/rate 0.03"
    assert (kept.best_step, kept.best_dev, kept.step) == (best.best_step, best.best_dev, 12)
    torch.testing.assert_close(prompt(kept), prompt(best), rtol=1e-4, atol=1e-5)
    assert {member.job.name: member.step for member in halved if member.dropped} == {
        one.name: 4 for one in searched.jobs() if one.name != best.job.name
    }


def test_the_run_of_a_trial_ends_that_is_dropped_while_it_waits(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two places, the first trials wait at the rung for the others, and are dropped without having one."""
    monkeypatch.setattr(FrozenBase, "prompt_tokens", 8)
    events = Events()
    halved = run(searched.base, searched.jobs(Rung(4, 1)), events).members
    assert sum(member.dropped is not None for member in halved) == 4
    assert {f"{member.job.name} FINISHED" for member in halved} <= set(events.seen)


def test_a_search_that_is_killed_ends_with_the_same_trials(searched: Searched, tmp_path: Path) -> None:
    """At the first rung, and behind it."""
    wanted = searched.jobs(Rung(2, 3), Rung(4, 1))
    whole = run(searched.base, wanted)
    for puts in (4, 5):
        store = Dying(tmp_path / str(puts), puts)
        with pytest.raises(Killed):
            run_gang(searched.base, wanted, NoTracker(), lambda line: None, Checkpoints(store, EVERY_STEP, SECRET))
        checkpoints = Checkpoints(FolderStore(tmp_path / str(puts)), EVERY_STEP, SECRET)
        resumed = run_gang(searched.base, wanted, NoTracker(), lambda line: None, checkpoints)
        for ours, theirs in zip(resumed.members, whole.members, strict=True):
            assert ours.dropped == theirs.dropped
            assert_same(ours, theirs)


def test_another_rule_has_another_checkpoint(base: CausalBase, tmp_path: Path) -> None:
    checkpoints, one = Checkpoints(FolderStore(tmp_path), 1, SECRET), job(base, "a")
    keys = {
        checkpoints.open(base, [one._replace(rungs=rungs)], "shared").key
        for rungs in ((), (Rung(4, 3),), (Rung(4, 2),), (Rung(2, 3),))
    }
    assert len(keys) == 4


# ---------------------------------------------------------------- what a member costs


def test_what_a_gang_takes_is_shared_among_its_members(base: CausalBase) -> None:
    before, cpu = time.perf_counter(), time.process_time()
    gang = run(base, [job(base, "small", batch_size=2), job(base, "large", seed=1, batch_size=8)])
    small, large = gang.members
    assert small.tokens + large.tokens == gang.clock.tokens
    assert large.tokens > small.tokens
    assert large.seconds > small.seconds > 0
    assert gang.clock.training < small.seconds + large.seconds < time.perf_counter() - before
    assert 0 < small.processor_seconds + large.processor_seconds <= time.process_time() - cpu


def test_an_older_checkpoint_counts_its_cost_from_zero(base: CausalBase) -> None:
    from ptpipeline.tuning import state

    gang = run(base, [job(base, "a")])
    fields: dict[str, Any] = state._list_plain_fields(gang.members[0])
    older = {name: value for name, value in fields.items() if name not in (*state.COST, "dropped")}
    member = Member.of(job(base, "a"))
    state._restore(member, older, state._list_member_tensors(gang.members[0]))
    assert (member.step, member.tokens, member.dropped) == (6, 0, None)
