"""Checkpoints: a gang that was interrupted goes on from its last one, and ends at the same bits."""

import dataclasses
import functools
import hmac
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptpipeline.errors import ArtifactError, Overtaken, ServiceUnavailable
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import list_tensors
from ptpipeline.records.prompts import CurvePoint
from ptpipeline.storage import FolderStore, ObjectStore, Stored
from ptpipeline.task.policy import Gate
from ptpipeline.tuning import state
from ptpipeline.tuning.checkpoint import Checkpoint, Checkpoints, identify_gang
from ptpipeline.tuning.clock import Clock
from ptpipeline.tuning.loop import Gang, run_gang
from ptpipeline.tuning.member import Job, Member, Pull
from ptpipeline.tuning.seal import seal, unseal
from ptpipeline.tuning.state import pack, unpack
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import SECRET, job

Undisturbed = Callable[[Callable[[CausalBase], list[Job]]], Gang]

EVERY_STEP = 0.0
RECIPES: list[dict[str, Any]] = [
    {"method": "prompt"},
    {"method": "residual", "encoder_width": 8},
    {"method": "p_tuning", "encoder_width": 8},
    {"method": "p_tuning", "encoder_width": 8, "encoder": "mlp"},
    {"method": "prefix", "encoder_width": 8},
]


@pytest.fixture(scope="module")
def base() -> CausalBase:
    return family("llama", torch.float32)


@pytest.fixture(scope="module")
def undisturbed(base: CausalBase) -> Undisturbed:
    """A gang that nothing interrupts, trained once; tests compare with it, and leave it as it is."""
    return functools.cache(lambda jobs: train(base, jobs(base)))


class Killed(BaseException):
    """Ends a training as a signal would: between two instructions, with nothing tidied up."""


class Dying(FolderStore):
    """A folder store whose process dies behind its n-th put."""

    def __init__(self, root: Path, puts: int) -> None:
        super().__init__(root)
        self.left = puts

    def create(self, key: str, body: bytes) -> None:
        super().create(key, body)
        self._count()

    def replace(self, key: str, body: bytes, etag: str) -> None:
        super().replace(key, body, etag)
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class Away(FolderStore):
    """A folder store that does not answer to the next `times` puts."""

    times = 0

    def create(self, key: str, body: bytes) -> None:
        if self.times:
            self.times -= 1
            raise ServiceUnavailable("the store does not answer")
        super().create(key, body)


class Runs(NoTracker):
    """Follows trainings by numbered runs; remembers which were begun and which gone on with."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.resumed: list[str] = []
        self.points: list[tuple[str | None, int]] = []

    def start(self, task: str, params: object, tags: object, run: str | None) -> str | None:
        (self.resumed if run else self.begun).append(run or f"run of {task}")
        return run or f"run of {task}"

    def log_point(self, run: str | None, point: CurvePoint) -> None:
        self.points.append((run, point.step))


def train(
    base: CausalBase,
    jobs: list[Job],
    store: ObjectStore | None = None,
    report: Callable[[str], None] = lambda line: None,
    seconds: float = EVERY_STEP,
) -> Gang:
    return run_gang(base, jobs, NoTracker(), report, Checkpoints(store, seconds, SECRET) if store else None)


def mixed(base: CausalBase) -> list[Job]:
    """Three methods and both optimizers; the first stops early, the last diverges at its second step."""
    return [
        job(base, "stops", seed=3, learning_rate=1e-12, steps=12, patience=2),
        job(
            base,
            "goes-on",
            seed=1,
            num_virtual_tokens=5,
            method="p_tuning",
            encoder_width=8,
            optimizer="adafactor",
            schedule="constant",
            learning_rate=0.3,
            steps=9,
        ),
        job(base, "breaks", seed=2, method="prefix", encoder_width=8, learning_rate=1e30, steps=9),
    ]


def sharing(base: CausalBase) -> list[Job]:
    """Two sources that learn one shared prompt together."""
    first = job(base, "one", method="multitask", shared="common", patience=9)
    shared = nn.Parameter(torch.as_tensor(first.initial).clone())
    return [
        one._replace(initial=shared.detach().clone(), shared=shared)
        for one in (first, job(base, "two", seed=1, method="multitask", shared="common", patience=9))
    ]


def assert_same(left: Member, right: Member) -> None:
    """Every field of two members, to the bit."""
    for name in ("step", "best_step", "best_dev", "stale", "run", "curve", "losses"):
        assert repr(getattr(left, name)) == repr(getattr(right, name)), name  # not by value: nan is no nan
    assert str(left.error) == str(right.error)
    assert (left.best is None) == (right.best is None)
    bests = [list_tensors(member.best) if member.best is not None else [] for member in (left, right)]
    states = [list(member.parameterisation.state_dict().values()) for member in (left, right)]
    optimizers = [member.optimizer.state_dict()["state"] for member in (left, right)]
    statistics = [
        [torch.as_tensor(value) for at in sorted(found) for _, value in sorted(found[at].items())]
        for found in optimizers
    ]
    for ours, theirs in (bests, states, statistics, [[left.gradient_norms], [right.gradient_norms]]):
        assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in theirs]
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(map(str, recipe.values())))
def test_a_member_survives_the_round_trip(base: CausalBase, recipe: dict[str, Any], optimizer: str) -> None:
    wanted = [job(base, "a", optimizer=optimizer, steps=5, eval_every=4, **recipe)]
    gang = train(base, wanted)
    gang.members[0].losses = [0.1, 1 / 3]
    gang.clock.started -= 100
    members, clock = unpack(pack(gang.members, gang.clock), wanted)
    assert_same(members[0], gang.members[0])
    assert [next(members[0].order) for _ in range(9)] == [next(gang.members[0].order) for _ in range(9)]
    assert (clock.steps, clock.tokens, clock.training) == (gang.clock.steps, gang.clock.tokens, gang.clock.training)
    assert gang.clock.elapsed - 1 < clock.elapsed <= gang.clock.elapsed


def test_no_field_of_a_member_is_forgotten() -> None:
    made_anew, tensors, sentences = (
        {"job", "order"},
        {"parameterisation", "optimizer", "best", "gradient_norms"},
        {"error", "curve", "dropped"},
    )
    assert {field.name for field in dataclasses.fields(Member)} == made_anew | tensors | sentences | set(state.PLAIN)
    assert {field.name for field in dataclasses.fields(Clock)} == {"started", "training", "tokens", "steps"}


@pytest.mark.parametrize("puts", [1, 2, 3, 4, 6, 8, 9])
@pytest.mark.parametrize("jobs", [mixed, sharing])
def test_an_interrupted_gang_ends_at_the_same_bits(
    base: CausalBase, undisturbed: Undisturbed, tmp_path: Path, jobs: Callable[[CausalBase], list[Job]], puts: int
) -> None:
    whole = undisturbed(jobs)
    try:
        train(base, jobs(base), Dying(tmp_path, puts))
    except Killed:
        lines: list[str] = []
        resumed = train(base, jobs(base), FolderStore(tmp_path), lines.append)
        assert "resumes from a checkpoint" in lines[0]
        for ours, theirs in zip(resumed.members, whole.members, strict=True):
            assert_same(ours, theirs)
        assert resumed.clock.steps == whole.clock.steps
    else:
        assert puts > whole.clock.steps


def test_a_gang_that_dies_again_and_again_ends_at_the_same_bits(
    base: CausalBase, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, deaths = undisturbed(mixed), 0
    while True:
        try:
            resumed = train(base, mixed(base), Dying(tmp_path, 2))
            break
        except Killed:
            deaths += 1
    assert deaths >= 4
    for ours, theirs in zip(resumed.members, whole.members, strict=True):
        assert_same(ours, theirs)


def test_the_mixed_gang_is_what_its_name_says(undisturbed: Undisturbed) -> None:
    stops, goes_on, breaks = undisturbed(mixed).members
    assert (stops.stopped_early, goes_on.step, goes_on.error) == (True, 9, None)
    assert breaks.error is not None
    assert 1 <= breaks.step < 9


def test_a_gang_that_ended_does_not_train_again(base: CausalBase, store: ObjectStore) -> None:
    whole, lines = train(base, mixed(base), store, seconds=60), list[str]()
    again = train(base, mixed(base), store, lines.append, seconds=60)
    assert [line for line in lines if "loss" in line] == []
    for ours, theirs in zip(again.members, whole.members, strict=True):
        assert_same(ours, theirs)


def test_cleared_checkpoints_are_gone(base: CausalBase, store: ObjectStore) -> None:
    checkpoints = Checkpoints(store, EVERY_STEP, SECRET)
    run_gang(base, mixed(base), NoTracker(), lambda line: None, checkpoints)
    assert len(list(store.keys("checkpoints"))) == 1
    checkpoints.clear()
    assert list(store.keys("checkpoints")) == []


def test_the_checkpoints_of_all_gangs_of_a_run_are_cleared(base: CausalBase, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    checkpoints = Checkpoints(store, EVERY_STEP, SECRET)
    for name in ("a", "b"):
        store.create(checkpoints.open(base, [job(base, name)], "shared").key, b"saved")
    checkpoints.clear()
    assert list(store.keys("checkpoints")) == []


def test_a_gang_that_was_taken_over_ends_and_writes_no_checkpoint(base: CausalBase, tmp_path: Path) -> None:
    def fence() -> None:
        raise Overtaken("another run took the task over")

    store = FolderStore(tmp_path)
    checkpoints = Checkpoints(store, EVERY_STEP, SECRET, fence)
    with pytest.raises(Overtaken):
        run_gang(base, [job(base, "a")], NoTracker(), lambda line: None, checkpoints)
    assert list(store.keys("checkpoints")) == []


def test_a_checkpoint_that_is_there_is_not_replaced_by_who_was_overtaken(base: CausalBase, tmp_path: Path) -> None:
    overtaken = list[bool]()

    def fence() -> None:
        if overtaken:
            raise Overtaken("another run took the task over")

    store, gang = FolderStore(tmp_path), train(base, [job(base, "a")])
    place = Checkpoint(store, "checkpoints/one.safetensors", 1, SECRET, fence)
    place.save(gang.members, gang.clock)
    before = store.read(place.key)
    gang.clock.steps += 1
    overtaken.append(True)
    with pytest.raises(Overtaken):
        place.save(gang.members, gang.clock)
    assert store.read(place.key) == before


def test_a_training_that_is_told_to_end_leaves_a_checkpoint_that_was_not_due(base: CausalBase, tmp_path: Path) -> None:
    store, wanted = FolderStore(tmp_path), [job(base, "a")]

    def tell(line: str) -> None:
        if ": step 1/" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        run_gang(base, wanted, NoTracker(), tell, Checkpoints(store, 3600, SECRET))
    assert saved_steps(store, wanted) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one._replace(tune=one.tune.model_copy(update={"learning_rate": 0.02})),
        lambda one: one._replace(tune=one.tune.model_copy(update={"eval_every": 3})),
        lambda one: one._replace(train=one.train[1:]),
        lambda one: one._replace(dev=one.dev[1:]),
        lambda one: one._replace(initial=one.initial + 1e-3),
        lambda one: one._replace(teacher=one.initial),
        lambda one: one._replace(shared=nn.Parameter(torch.as_tensor(one.initial).clone())),
        lambda one: one._replace(pull=Pull(torch.as_tensor(one.initial), 1.0)),
        lambda one: one._replace(name="other"),
        lambda one: one._replace(task=one.task.model_copy(update={"gate": Gate(metric="macro_f1", minimum=0.5)})),
        lambda one: one._replace(task=one.task.model_copy(update={"template": "{text}:"})),
        lambda one: one._replace(text=one.text._replace(labels=one.text.labels._replace(normalised=True))),
    ],
)
def test_another_gang_has_another_place(base: CausalBase, tmp_path: Path, change: Callable[[Job], Job]) -> None:
    checkpoints, one, two = Checkpoints(FolderStore(tmp_path), 1, SECRET), job(base, "a"), job(base, "b")
    key = checkpoints.open(base, [one, two], "shared").key
    assert key == checkpoints.open(base, [job(base, "a"), job(base, "b")], "shared").key
    assert key not in {
        checkpoints.open(base, *other).key
        for other in (
            ([change(one), two], "shared"),
            ([two, one], "shared"),
            ([one], "shared"),
            ([one, two], "concatenated"),
        )
    }


def test_a_stronger_pull_another_type_and_another_base_have_other_places(base: CausalBase) -> None:
    towards = torch.zeros(3, 32)
    places = [identify_gang(base, [job(base, "a")._replace(pull=Pull(towards, gamma))], "shared") for gamma in (1, 2)]
    places += [identify_gang(base, [job(base, "a")._replace(pull=Pull(towards + 1, 1))], "shared")]
    other = base.ref.model_copy(update={"fingerprint": "f" * 64})
    for changed in (base, dataclasses.replace(base, dtype=torch.float64), dataclasses.replace(base, ref=other)):
        places.append(identify_gang(changed, [job(base, "a")], "shared"))
    assert len(set(places)) == len(places)


def test_how_many_dev_rows_were_asked_for_has_no_place_of_its_own(base: CausalBase) -> None:
    one = job(base, "a")
    fewer = one._replace(tune=one.tune.model_copy(update={"dev_rows": 7}))
    assert identify_gang(base, [fewer], "shared") == identify_gang(base, [one], "shared")


def damage(path: Path, how: str) -> None:
    body = path.read_bytes()
    at = len(body) - 9 if how == "a flipped bit of a tensor" else body.index(b"best_step") + 13
    damaged = {
        "truncated": body[: len(body) // 2],
        "empty": b"",
        "no safetensors": b"\xff" * 64,
        "an older format": body,
        "a flipped bit of a tensor": body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :],
        "a flipped bit of the state": body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :],
    }
    path.write_bytes(damaged[how])


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "no safetensors",
        "a flipped bit of a tensor",
        "a flipped bit of the state",
        "an older format",
    ],
)
def test_an_unusable_checkpoint_costs_time_only(
    base: CausalBase, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    whole = undisturbed(mixed)
    with pytest.raises(Killed):
        train(base, mixed(base), Dying(tmp_path, 4))
    damage(next((tmp_path / "checkpoints").glob("*.safetensors")), how)
    if how == "an older format":
        monkeypatch.setattr(state, "FORMAT", 2)
    lines: list[str] = []
    again = train(base, mixed(base), FolderStore(tmp_path), lines.append)
    assert ("format 1" in lines[0]) if how == "an older format" else ("has no valid seal" in lines[0])
    assert "training starts from the beginning" in lines[0]
    for ours, theirs in zip(again.members, whole.members, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("written", ["by another ledger's trainer", "for another gang", "without a seal"])
def test_a_sound_checkpoint_that_this_place_did_not_get_from_the_trainer_is_refused(
    base: CausalBase, undisturbed: Undisturbed, tmp_path: Path, written: str
) -> None:
    whole, store = undisturbed(mixed), FolderStore(tmp_path)
    with pytest.raises(Killed):
        train(base, mixed(base), Dying(tmp_path, 4))
    key = next(store.keys("checkpoints"))
    body = unseal(SECRET, key, store.read(key).body)
    forged = {
        "by another ledger's trainer": seal(b"o" * 32, key, body),
        "for another gang": seal(SECRET, f"checkpoints/{'0' * 64}.safetensors", body),
        "without a seal": body,
    }
    store.replace(key, forged[written], store.read(key).etag)
    lines: list[str] = []
    again = train(base, mixed(base), store, lines.append)
    assert lines[0].startswith(f"{store.url}/{key}: it has no valid seal")
    assert "training starts from the beginning" in lines[0]
    for ours, theirs in zip(again.members, whole.members, strict=True):
        assert_same(ours, theirs)


def test_a_seal_is_of_one_key_one_body_and_one_purpose() -> None:
    stored = seal(SECRET, "key", b"body")
    assert unseal(SECRET, "key", stored) == b"body"
    for key, other in (
        ("keyb", stored.replace(b"body", b"ody")),  # divided elsewhere
        ("key", hmac.digest(SECRET, b"\0key\0body", "sha256") + b"body"),  # a code that was made for something else
    ):
        with pytest.raises(ArtifactError, match="no valid seal"):
            unseal(SECRET, key, other)


def test_nothing_of_a_checkpoint_is_parsed_before_its_seal(
    base: CausalBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lines = FolderStore(tmp_path), list[str]()
    place = Checkpoints(store, 1, SECRET).open(base, [job(base, "a")], "shared")
    store.create(place.key, seal(b"o" * 32, place.key, b"anything"))
    parsed: list[bytes] = []
    monkeypatch.setattr("ptpipeline.tuning.checkpoint.unpack", lambda body, jobs: parsed.append(body))
    assert place.load([job(base, "a")], lines.append) is None
    assert parsed == []


def test_an_earlier_checkpoint_put_back_ends_at_the_same_bits(
    base: CausalBase, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Its seal holds, since it was this gang's: whoever replays it costs the trainer time, and nothing else."""
    whole, store = undisturbed(mixed), FolderStore(tmp_path)
    with pytest.raises(Killed):
        train(base, mixed(base), Dying(tmp_path, 2))
    key = next(store.keys("checkpoints"))
    early = store.read(key).body
    with pytest.raises(Killed):
        train(base, mixed(base), Dying(tmp_path, 3))
    assert saved_steps(store, mixed(base)) == 5
    store.replace(key, early, store.read(key).etag)
    assert saved_steps(store, mixed(base)) == 2
    lines: list[str] = []
    resumed = train(base, mixed(base), store, lines.append)
    assert "resumes from a checkpoint" in lines[0]
    for ours, theirs in zip(resumed.members, whole.members, strict=True):
        assert_same(ours, theirs)


def test_a_checkpoint_of_other_parameters_is_refused(base: CausalBase) -> None:
    gang = train(base, [job(base, "a")])
    with pytest.raises(ArtifactError, match="other parameters"):
        unpack(pack(gang.members, gang.clock), [job(base, "a", num_virtual_tokens=4)])


def saved_steps(store: ObjectStore, jobs: list[Job]) -> int:
    """How many steps the clock of the one stored checkpoint counts."""
    key = next(iter(store.keys("checkpoints")))
    return unpack(unseal(SECRET, key, store.read(key).body), jobs).clock.steps


def test_a_store_that_is_away_for_a_moment_ends_no_training(
    base: CausalBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Away(tmp_path)
    store.times = 3
    gang = train(base, mixed(base), store)
    assert (
        len(
            [
                record
                for record in caplog.records
                if "no checkpoint at step" in record.message and record.levelno == logging.WARNING
            ]
        )
        == 1
    )
    assert saved_steps(store, mixed(base)) == gang.clock.steps


def test_two_trainers_of_one_gang_do_not_stop_each_other(base: CausalBase, store: ObjectStore) -> None:
    gang = train(base, [job(base, "a")])
    first, second = (Checkpoint(store, "checkpoints/one.safetensors", 1, SECRET) for _ in range(2))
    for trainer in (first, second, first):
        trainer.save(gang.members, gang.clock)
    second.clear()
    first.save(gang.members, gang.clock)
    found = first.load([job(base, "a")], lambda line: None)
    assert found is not None
    assert_same(found[0][0], gang.members[0])


def test_a_checkpoint_is_due_by_the_clock(base: CausalBase, tmp_path: Path) -> None:
    assert Checkpoint(FolderStore(tmp_path), "checkpoints/a", 0, SECRET).due
    later = Checkpoint(FolderStore(tmp_path), "checkpoints/a", 60, SECRET)
    assert not later.due
    later._last -= 60
    assert later.due


def test_a_store_that_is_away_is_asked_again_at_the_next_interval_only(tmp_path: Path) -> None:
    store = Away(tmp_path)
    store.times = 1
    place = Checkpoint(store, "checkpoints/a", 60, SECRET)
    place._last -= 60
    place.save([], Clock())
    assert (list(store.keys("checkpoints")), place.due) == ([], False)


class Noting(FolderStore):
    """A folder store that notes what it is asked; another process writes or deletes the object before each put."""

    def __init__(self, root: Path, others: str = "") -> None:
        super().__init__(root)
        self.asked, self.others = list[str](), others

    def read(self, key: str) -> Stored:
        self.asked.append("read")
        return super().read(key)

    def create(self, key: str, body: bytes) -> None:
        self.asked.append("create")
        if self.others:
            super().create(key, b"of the other")
        super().create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        self.asked.append("replace")
        if self.others:
            super().delete(key)
        super().replace(key, body, etag)


def test_whether_the_gang_was_taken_over_is_asked_between_read_and_put(tmp_path: Path) -> None:
    """Asked before the read, another process could take the gang over, write and be overwritten."""
    store = Noting(tmp_path)
    place = Checkpoint(store, "checkpoints/a", 60, SECRET, lambda: store.asked.append("fence"))
    for put in ("create", "replace"):
        store.asked.clear()
        place.save([], Clock())
        assert store.asked == ["read", "fence", put]


def test_who_loses_a_put_to_another_trainer_of_the_gang_warns_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Noting(tmp_path, "another trainer")
    place = Checkpoint(store, "checkpoints/a", 60, SECRET)
    for _ in range(2):  # another one wrote first, then deleted first
        place.save([], Clock())
    assert [asked for asked in store.asked if asked != "read"] == ["create", "replace"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class Broken(FolderStore):
    """A folder store whose disk fails."""

    def create(self, key: str, body: bytes) -> None:
        raise OSError("the disk fails")

    def delete(self, key: str) -> None:
        raise OSError("the disk fails")


def test_a_disk_that_fails_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = Checkpoint(Broken(tmp_path), "checkpoints/a", 60, SECRET)
    place.save([], Clock())
    place.clear()
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "no checkpoint at step 0, training goes on: the disk fails"
    assert told[1].startswith("checkpoints/a stays in ")


def test_a_resumed_training_goes_on_with_its_runs(base: CausalBase, tmp_path: Path) -> None:
    runs, wanted = Runs(), [job(base, name, eval_every=1, patience=9) for name in "ab"]
    with pytest.raises(Killed):
        run_gang(base, wanted, runs, lambda line: None, Checkpoints(Dying(tmp_path, 3), EVERY_STEP, SECRET))
    gang = run_gang(base, wanted, runs, lambda line: None, Checkpoints(FolderStore(tmp_path), EVERY_STEP, SECRET))
    assert (runs.begun, runs.resumed) == (["run of a", "run of b"],) * 2
    assert [step for run, step in runs.points if run == "run of a"] == [1, 2, 3, 4, 5, 6]
    assert gang.members[1].run == "run of b"


def test_a_base_that_changed_leaves_no_checkpoint(tmp_path: Path) -> None:
    base = family("llama", torch.float32)

    class Careless(Runs):
        def log_point(self, run: str | None, point: CurvePoint) -> None:
            with torch.no_grad():
                base.model.lm_head.weight.add_(1e-3)

    with pytest.raises(Exception, match="weights changed"):
        run_gang(
            base,
            [job(base, "a")],
            Careless(),
            lambda line: None,
            Checkpoints(FolderStore(tmp_path), EVERY_STEP, SECRET),
        )
    assert list(FolderStore(tmp_path).keys("checkpoints")) == []
