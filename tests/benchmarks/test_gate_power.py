"""The gate's benchmark in a short form: it prints, and judges nothing."""

import json
import subprocess
import sys
from pathlib import Path


def test_its_last_line_holds_the_figures() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gate_power",
        "--trials",
        "20",
        "--tasks",
        "2",
        "--nights",
        "4",
        "--rows",
        "300",
    ]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = {
        "wrong_promotions",
        "power",
        "wrong_promotions_year",
        "naive_wrong_promotions",
        "naive_wrong_promotions_year",
        "trials",
    }
    assert wanted <= set(found)
    print(done.stdout)
