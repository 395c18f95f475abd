"""The benchmark of ingest measures every format, and leaves no process behind."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import benchmarks
from benchmarks import ingest

PARENT = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from benchmarks.fixtures.children import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.soak
def test_every_format_is_ingested_and_measured(capsys: pytest.CaptureFixture[str]) -> None:
    ingest.main(["--rows", "400"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [figures[form]["rows_kept"] for form in ("csv", "jsonl", "parquet")] == [400] * 3
    assert all(figures[form]["peak_mib"] > 50 and figures[form]["rows_per_second"] > 0 for form in ingest.FORMATS)


def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(benchmarks.__file__).parents[1])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    end = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(child)


def test_every_benchmark_that_spawns_processes_has_them_end_with_it() -> None:
    folder = Path(str(benchmarks.__file__)).parent
    spawning = [path for path in folder.rglob("*.py") if re.search(r"get_context\(\"spawn\"\)", path.read_text())]
    assert len(spawning) >= 3
    assert [path.name for path in spawning if "end_with_parent" not in path.read_text()] == []
