"""Two versions beside each other: a canary has its share of the keys, and a shadow answers nothing."""

from collections.abc import Sequence
from pathlib import Path

from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.versions import Beside
from ptpipeline.serving.engine import Question
from ptpipeline.serving.holdings import RETAINED
from ptpipeline.serving.live import Live
from ptpipeline.serving.servers import read_server_reports
from tests.serving.registered import TASK, Clock, OnEngine, point
from tests.serving.test_live import Away, Server, damage_tensors, digest, server, store

__all__ = ["server", "store"]  # fixtures


def test_a_canary_answers_its_share_of_the_keys_and_keeps_them(server: Server, store: Away) -> None:
    keys = [f"user {number}" for number in range(1000)]
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=10))
    server.poll()
    few = {key for key in keys if server.live.find(TASK, key).number == 2}
    assert 70 < len(few) < 130
    assert few == {key for key in keys if server.live.find(TASK, key).number == 2}
    point(store, 1, digest(1), 3, beside=Beside(version=2, digest=digest(2), percent=50))
    server.poll()
    assert few < {key for key in keys if server.live.find(TASK, key).number == 2}


def test_without_a_key_each_request_is_drawn_anew(server: Server, store: Away) -> None:
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=50))
    server.poll()
    assert {server.live.find(TASK).number for _ in range(60)} == {1, 2}


def test_another_canary_has_other_keys(server: Server, store: Away) -> None:
    """Else the same people would get every canary."""
    keys, drawn = [f"user {number}" for number in range(1000)], []
    for seq, number in ((2, 2), (3, 3)):
        point(store, 1, digest(1), seq, beside=Beside(version=number, digest=digest(number), percent=10))
        server.poll()
        drawn.append({key for key in keys if server.live.find(TASK, key).number == number})
    assert min(map(len, drawn)) > 70
    assert len(drawn[0] & drawn[1]) < 30


def test_a_shadow_answers_nothing_and_is_named_to_be_asked(server: Server, store: Away) -> None:
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=0))
    server.poll()
    served = [server.live.find(TASK, str(key)) for key in range(200)]
    assert {one.number for one in served} == {1}
    assert {one.shadow.digest for one in served if one.shadow} == {digest(2)}
    server.holder.engine.score_labels([Question(digest(2), {"text": "good"})])


def test_a_canary_whose_bytes_do_not_hold_is_refused_whole(server: Server, store: Away) -> None:
    damage_tensors(store)
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=50))
    server.poll()
    assert "truncated or altered" in server.reasons()[0]
    assert {server.live.find(TASK, str(key)).number for key in range(100)} == {1}


def test_both_versions_are_reported_before_either_is_read(store: Away, tmp_path: Path) -> None:
    class Watched(OnEngine):
        def hold(self, artifact: Artifact, members: Sequence[Artifact]) -> None:
            seen.append({held.digest for report in read_server_reports(store) for held in report.holds})
            super().hold(artifact, members)

    seen: list[set[str]] = []
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=10))
    Live(store, Watched(), tmp_path, server="host", clock=Clock()).poll()
    assert seen == [{digest(1), digest(2)}] * 2


def test_a_canary_does_not_hide_the_version_before(server: Server, store: Away) -> None:
    point(store, 2, digest(2), 2)
    server.poll()
    point(store, 2, digest(2), 3, beside=Beside(version=3, digest=digest(3), percent=10))
    server.poll()
    server.poll(2 * RETAINED)
    assert server.holder.dropped == []
