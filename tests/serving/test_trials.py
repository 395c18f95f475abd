"""A shadow's answers are compared and counted, and feedback says, at any time, whether one version is better."""

import asyncio
import itertools
import math
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ville.proportions import BernoulliTest

from ptpipeline.errors import Overloaded
from ptpipeline.records.serving import CanaryTally, Tally
from ptpipeline.records.versions import Beside
from ptpipeline.serving import trials as trials_module
from ptpipeline.serving.live import REPORT
from ptpipeline.serving.served import Served, Split
from ptpipeline.serving.servers import read_server_reports
from ptpipeline.serving.trials import ERROR, Trials, compute_evidence, describe_canary, describe_shadow, is_different
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import server_key
from tests.serving.registered import TASK, a_prompt, point
from tests.serving.test_live import Away, Server, digest, server, store

__all__ = ["server", "store"]  # fixtures

PLACE = (TASK, "production", 2)
COUNTER = itertools.count()


@cache
def served(seq: int = 2) -> Served:
    manifest = a_prompt(" yes").manifest
    shadow = Served(TASK, 2, "b" * 64, "production", manifest, seq)
    return Served(TASK, 1, "a" * 64, "production", manifest, seq, shadow)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_evidence_is_that_of_an_independent_package_after_every_answer(stream: list[bool]) -> None:
    """ville's mixture e-process for a fair coin, with the same prior."""
    test = BernoulliTest(0.5, alpha=ERROR, prior=(0.5, 0.5))
    theirs = test._process(np.array(stream, dtype=float))
    ours = [compute_evidence(sum(stream[:end]), end - sum(stream[:end])) for end in range(1, len(stream) + 1)]
    assert ours == pytest.approx(list(theirs), abs=1e-9)


def test_equal_versions_are_rarely_called_different_however_often_one_looks() -> None:
    dice, called = random.Random(1), 0
    for _ in range(400):
        first = 0
        for count in range(1, 301):
            first += dice.random() < 0.5
            if compute_evidence(first, count - first) >= -math.log(ERROR):
                called += 1
                break
    assert called / 400 <= ERROR


def test_a_better_version_is_called_different_soon() -> None:
    dice, needed = random.Random(1), []
    for _ in range(50):
        first = count = 0
        while compute_evidence(first, count - first) < -math.log(ERROR):
            first += dice.random() < 0.8
            count += 1
        needed.append(count)
    assert sorted(needed)[25] < 40


def test_answers_are_compared_and_feedback_counts_where_they_differ(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "file:///x")
    trials.compare(served(), "one", {0: "good", 1: "bad", 2: "bad"}, ["good", "good", "good"])
    assert trials.judge("one", 0, "good")  # both right
    assert trials.judge("one", 1, "good")  # the shadow alone
    assert trials.judge("one", 2, "bad")  # the alias's own alone
    assert trials.list() == [Tally(*PLACE, 1, 2, asked=3, differ=2, judged=3, first=1, second=1)]


def test_an_answer_is_judged_once_and_one_that_is_unknown_never(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "file:///x")
    trials.compare(served(), "one", {0: "good"}, ["bad"])
    assert [trials.judge("one", 0, "good"), trials.judge("one", 0, "good")] == [True, False]
    assert not trials.judge("two", 0, "good")
    assert trials.list()[0].judged == 1


def test_only_the_last_answers_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "REMEMBERED", 2)
    trials = Trials(tmp_path, "file:///x")
    for name in ("one", "two", "three"):
        trials.compare(served(), name, {0: "good"}, ["bad"])
    assert [trials.judge(name, 0, "good") for name in ("one", "two", "three")] == [False, True, True]


def test_a_shadow_that_fails_is_counted_and_disturbs_nothing(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "file:///x")

    async def overloaded(_: str) -> Sequence[str]:
        raise Overloaded("full", 1.0)

    async def broken(_: str) -> Sequence[str]:
        raise RuntimeError("a fault")

    async def both() -> None:
        for ask in (overloaded, broken):
            trials.mirror(served(), "one", {0: "good"}, ask)
        await asyncio.sleep(0.01)

    asyncio.run(both())
    assert trials.list() == [Tally(*PLACE, 1, 2, failed=2)]


def test_shadows_are_asked_for_a_bounded_number_of_requests_at_once(tmp_path: Path) -> None:
    trials, asked = Trials(tmp_path, "file:///x"), []

    async def ask(name: str) -> Sequence[str]:
        asked.append(name)
        await asyncio.sleep(0.01)
        return ["good"]

    async def many() -> None:
        for number in range(50):
            trials.mirror(served(), str(number), {0: "good"}, ask)
        await asyncio.sleep(0.1)

    asyncio.run(many())
    assert asked == ["b" * 64] * trials_module.AT_ONCE


def test_no_shadow_is_asked_about_a_request_without_an_answer(tmp_path: Path) -> None:
    trials, asked = Trials(tmp_path, "file:///x"), list[str]()

    async def ask(name: str) -> Sequence[str]:
        asked.append(name)
        return []

    async def mirror() -> None:
        trials.mirror(served(), "one", {}, ask)
        await asyncio.sleep(0.01)

    asyncio.run(mirror())
    assert (asked, trials.list()) == ([], [])


def test_tallies_outlive_a_restart_and_end_with_their_promotion(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "file:///x")
    trials.compare(served(2), "one", {0: "good"}, ["bad"])
    trials.compare(served(3), "two", {0: "good"}, ["good"])
    trials.keep([PLACE])
    again = Trials(tmp_path, "file:///x")
    assert again.list() == [Tally(*PLACE, 1, 2, asked=1, differ=1)]
    assert (tmp_path / "trials.json").stat().st_mode & 0o077 == 0
    assert Trials(tmp_path, "file:///another").list() == []
    again.keep([])
    assert Trials(tmp_path, "file:///x").list() == []


def test_tallies_that_were_damaged_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trials.json").write_bytes(b'{"store":')
    assert Trials(tmp_path, "file:///x").list() == []
    assert "the comparisons begin again" in caplog.text


def test_a_server_reports_how_its_shadows_compare(server: Server, store: Away) -> None:
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=0))
    server.poll()
    server.live.trials.compare(server.live.find(TASK), "one", {0: "good"}, ["bad"])
    server.poll(REPORT)
    [report] = read_server_reports(FolderStore(store.root))
    assert report.trials == [Tally(*PLACE, 1, 2, asked=1, differ=1)]


def drawn(number: int) -> Served:
    """The version that answers a request of an alias whose canary is version 2."""
    return served()._replace(number=number, shadow=None, split=Split(1, 2))


def tell(trials: Trials, number: int, right: bool) -> None:
    """A version answers, and then feedback says whether it was right."""
    request = f"request {next(COUNTER)}"
    trials.note(drawn(number), request, {0: "good"})
    assert trials.judge(request, 0, "good" if right else "bad")


def test_the_answers_of_a_canary_are_judged_beside_those_of_the_version_that_it_stands_beside(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "file:///x")
    for number, right in ((1, True), (1, False), (2, True), (2, True), (1, True), (2, False), (1, True)):
        tell(trials, number, right)
    # the second and third make a pair, then the fourth and fifth, the sixth and seventh; the first was replaced
    tally = CanaryTally(*PLACE, 1, 2, judged=4, right=3, canary_judged=3, canary_right=2, first=1, second=1)
    assert (trials.list_canaries(), trials.list()) == ([tally], [])


@pytest.mark.parametrize("number", [1, 2])
def test_two_answers_of_one_version_make_no_pair(tmp_path: Path, number: int) -> None:
    trials = Trials(tmp_path, "file:///x")
    for right in (True, False, True):
        tell(trials, number, right)
    [tally] = trials.list_canaries()
    assert (tally.first, tally.second, tally.judged + tally.canary_judged) == (0, 0, 3)


def test_an_answer_waits_for_one_of_the_other_version_over_a_report(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "file:///x")
    tell(trials, 1, True)
    trials.keep([PLACE])  # as each report does it
    tell(trials, 2, False)
    [tally] = trials.list_canaries()
    assert (tally.first, tally.second) == (1, 0)


def test_an_answer_beside_a_canary_is_judged_once(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "file:///x")
    trials.note(drawn(2), "one", {0: "good"})
    trials.note(served()._replace(shadow=None), "two", {0: "good"})
    assert [trials.judge("one", 0, "good"), trials.judge("one", 0, "good")] == [True, False]
    assert not trials.judge("two", 0, "good")  # nothing stood beside that one


def test_an_equal_canary_is_rarely_called_different_whatever_its_share(tmp_path: Path) -> None:
    """Texts become harder in the middle; one looks after every answer."""
    dice, called = random.Random(2), 0
    for _ in range(50):
        trials = Trials(tmp_path, "file:///x")
        for step in range(400):
            tell(trials, 1 + (dice.random() < 0.1), dice.random() < (0.9 if step < 200 else 0.5))
            [tally] = trials.list_canaries()
            if is_different(tally):
                called += 1
                break
    assert called / 50 <= ERROR


def test_a_better_canary_is_called_different(tmp_path: Path) -> None:
    dice, trials = random.Random(3), Trials(tmp_path, "file:///x")
    for _ in range(2000):
        canary = dice.random() < 0.1
        tell(trials, 1 + canary, dice.random() < (0.95 if canary else 0.7))
    [tally] = trials.list_canaries()
    assert describe_canary(tally).endswith(": version 2 is right more often (error below 5%)")


def test_tallies_of_canaries_survive_a_restart_and_end_with_their_promotion(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "file:///x")
    tell(trials, 2, True)
    trials.keep([PLACE])
    again = Trials(tmp_path, "file:///x")
    assert again.list_canaries() == [CanaryTally(*PLACE, 1, 2, canary_judged=1, canary_right=1)]
    again.keep([])
    assert Trials(tmp_path, "file:///x").list_canaries() == []


def test_a_server_reports_how_its_canaries_compare(server: Server, store: Away) -> None:
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=50))
    server.poll()
    drawn = next(one for key in range(100) if (one := server.live.find(TASK, str(key))).number == 2)
    server.live.trials.note(drawn, "one", {0: "good"})
    server.live.trials.judge("one", 0, "good")
    server.poll(REPORT)
    [report] = read_server_reports(FolderStore(store.root))
    assert (report.canaries, report.trials) == ([CanaryTally(*PLACE, 1, 2, canary_judged=1, canary_right=1)], [])


def test_a_report_that_knows_no_canaries_still_loads(server: Server, store: Away) -> None:
    path = store.root / server_key("host")
    written = path.read_bytes()
    assert b"canaries" not in written  # as an older ptpipeline writes it, with the digest that it states
    assert read_server_reports(store)[0].canaries == []


def test_a_tally_says_whether_versions_differ() -> None:
    few, many = Tally(*PLACE, 1, 2, first=3, second=1), Tally(*PLACE, 1, 2, first=30, second=5)
    assert (is_different(few), is_different(many)) == (False, True)


def test_the_first_answers_that_all_speak_for_one_version_show_it_with_the_seventh() -> None:
    """The evidence is 14.4 times that of equal versions after six, 26.8 times after seven; twenty times are needed."""
    assert [is_different(Tally(*PLACE, 1, 2, first=count)) for count in (6, 7)] == [False, True]


def test_the_first_feedback_on_a_canary_is_told() -> None:
    told = describe_canary(CanaryTally(*PLACE, 1, 2, canary_judged=1, canary_right=1))
    assert "1 of 1 of canary 2 were right, 0 of 0 of version 1" in told


def test_tallies_that_cannot_be_written_are_told_and_counted_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trials = Trials(tmp_path / "home", "file:///x")
    (tmp_path / "home").touch()  # no folder
    tell(trials, 2, True)
    trials.keep([PLACE])
    assert "a restart would begin the comparisons again" in caplog.text
    assert [tally.canary_judged for tally in trials.list_canaries()] == [1]


@pytest.mark.parametrize(("first", "second", "better"), [(30, 5, 1), (5, 30, 2)])
def test_the_version_that_was_right_alone_more_often_is_named(first: int, second: int, better: int) -> None:
    told = describe_shadow(Tally(*PLACE, 1, 2, asked=90, judged=90, first=first, second=second))
    assert told.endswith(f": version {better} is right more often (error below 5%)")
