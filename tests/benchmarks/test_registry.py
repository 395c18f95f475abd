"""The registry benchmark in its short form over real servers: what it prints, that its seeding is sound, and how it
counts losses.
"""

import json
import sys
from collections.abc import Sequence

import pytest

from benchmarks.race import count_overwritten
from benchmarks.registry import main
from ptpipeline.records.versions import Promotion

MEASURED = ("resolve", "promote", "publish")
READ = {"versions_page_ms", "versions_last_page_ms", "show_ms", "heads_ms", "history_ms"}
RACED = {"races", "won", "conflicts", "overwritten"}
PROVENANCE = {"ledger", "tasks", "versions", "rounds", "cores"}


@pytest.mark.servers
@pytest.mark.soak
@pytest.mark.parametrize("ledger", ["sqlite", "postgres"])
def test_races_overwrite_nothing_and_the_doctor_is_content(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--ledger", ledger, "--tasks", "0", "--rounds", "2", "--races", "4"]
    main(options)
    line = capsys.readouterr().out.splitlines()[-1]
    with capsys.disabled():
        print(f"\nbenchmarks.registry {' '.join(options)}: {line}", file=sys.stderr)
    figures = json.loads(line)
    timed = {f"{name}_{suffix}" for name in MEASURED for suffix in ("p50_ms", "p95_ms", "sends")}
    assert set(figures) == timed | READ | RACED | PROVENANCE | {"doctor_s", "doctor_differences"}
    assert figures["won"] + figures["conflicts"] == 2 * figures["races"]
    assert figures["conflicts"] >= 2
    assert (figures["overwritten"], figures["doctor_differences"]) == (0, 0)
    assert figures["resolve_sends"] == {"mlflow": 0, "s3": 4, "statements": 0, "writes": 0}


def a_history(*versions: int) -> list[Promotion]:
    return [
        Promotion(
            task="mood",
            alias="canary",
            seq=seq,
            version=version,
            digest=str(version) * 64,
            previous=versions[seq - 2] if seq > 1 else None,
            actor="me",
            reason="why",
            verdict=None,
            at="2026-01-01T00:00:00+00:00",
        )
        for seq, version in enumerate(versions, 1)
    ]


@pytest.mark.parametrize(
    ("kept", "lost"),
    [([0, 1, 2], 0), ([0, 1], 1), ([0, 2], 2), ([1, 2], 3)],
    ids=["all", "the last is gone", "one is gone and what followed has no predecessor", "the first is gone"],
)
def test_missing_rows_count_as_overwritten(kept: Sequence[int], lost: int) -> None:
    told = a_history(1, 2, 3)
    assert count_overwritten(told, [told[index] for index in kept]) == lost


def test_another_row_in_its_place_counts_as_overwritten() -> None:
    told, other = a_history(1, 2, 3), a_history(1, 3, 2)
    assert count_overwritten(told, other) >= 2


def test_one_number_given_twice_counts_as_overwritten() -> None:
    told = a_history(1, 2)
    assert count_overwritten([*told, told[1].model_copy(update={"actor": "you"})], told) >= 1
