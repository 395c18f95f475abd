"""What the local stack costs while nobody uses it: processor time of each of its servers, in percent of a core.

`python -m benchmarks.idle [--seconds 600]` watches the stack of PTP_HOME that `ptp up` started, with all processes that
these start meanwhile, and prints one JSON. Something happens every five minutes, so watch for two of these.
"""

import argparse
import json
import time

import psutil

from flows.local.process import Process
from flows.local.stack import read
from ptpipeline.errors import StackError
from ptpipeline.settings import load_settings


def _read_seconds(process: Process) -> float:
    root = psutil.Process(process.pid)
    times = [own.cpu_times() for own in (root, *root.children(recursive=True))]
    # `children_*` are the times of processes that ended, such as flow runs
    total: float = sum(own.user + own.system + own.children_user + own.children_system for own in times)
    return total


def main() -> None:
    """Measure and print; raise StackError if the stack is down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to watch")
    seconds = parser.parse_args().seconds
    stack = read(load_settings().home)
    if stack is None or not stack.processes:
        raise StackError("no stack runs: `ptp up` starts one")
    before = {name: _read_seconds(process) for name, process in stack.processes.items()}
    time.sleep(seconds)
    spent = {name: _read_seconds(process) - before[name] for name, process in stack.processes.items()}
    shares = {name: round(100 * value / seconds, 2) for name, value in spent.items()}
    print(json.dumps({"percent_of_a_core": shares, "total": round(sum(shares.values()), 2), "seconds": seconds}))


if __name__ == "__main__":
    main()
