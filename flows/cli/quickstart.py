"""`make quickstart`: stack up, flows deployed, demo data and base fetched, the nightly flow triggered and followed.

Environment: KEEP=0 ends the stack afterwards; by default it stays up so that the pages open.
"""

import os
import subprocess
import sys
import time
from typing import Any

from flows.cli.render import answer_row, show
from flows.cli.work import followed
from flows.local.stack import down, up
from flows.requests import NightlyRequest
from flows.server.deploy import deploy
from flows.server.trigger import trigger
from ptpipeline.errors import PtpError, Terminal
from ptpipeline.settings import Settings, load_settings
from ptpipeline.task.task import load_tasks

TASKS = ("movie-sentiment", "tweet-sentiment")
SAMPLES = (
    ("movie-sentiment", "A quietly devastating film that stays with you for days."),
    ("movie-sentiment", "Two hours of noise in search of a plot."),
    ("tweet-sentiment", "ugh, my flight got cancelled again :("),
)
COLUMNS = ("task", "metric", "zero_shot", "candidate", "champion", "verdict", "version", "bytes", "status")

# In a process of its own, so that the memory that a conversion takes is given back before training.
_FETCH = """
import sys
from ptpipeline.data.sources import read_rows
from ptpipeline.models.base import prepare_base
from ptpipeline.settings import load_settings
from ptpipeline.task.task import find_task
settings = load_settings()
for name in sys.argv[1:]:
    task = find_task(settings.tasks, name)
    read_rows(task, settings.home)
    prepare_base(task.base_model, settings)
"""


def quickstart() -> None:
    """The whole way from nothing to promoted prompts; raises PtpError where a step fails."""
    started = time.monotonic()
    settings = load_settings()
    _say("1/5 fetching the demo data and the base model (a few hundred MB the first time)")
    _fetch(TASKS)
    fetched = time.monotonic()
    _say(f"2/5 starting Prefect, MLflow and S3 on loopback, data in {settings.home}")
    up(settings.home)
    settings = load_settings()
    deploy(settings, load_tasks(settings.tasks))
    _say("3/5 triggering the nightly flow through the Prefect API")
    run_id = trigger(str(settings.prefect), "nightly", NightlyRequest(tasks=list(TASKS), reason="quickstart"))
    finished = followed(str(settings.prefect), run_id)
    _say(f"flow run {finished.state}: {finished.message}")
    show(
        [{name: "-" if row.get(name) is None else row[name] for name in COLUMNS} for row in finished.rows],
        as_json=False,
    )
    for row in finished.rows:
        print(f"{row['task']}: {row['reason']}")
    if finished.state != "COMPLETED":
        raise Terminal(f"the nightly flow ended {finished.state}: {finished.message}")
    _say("4/5 answers of the promoted prompts, read from S3 alone")
    show(_answers(), as_json=False)
    _say("5/5 the pages that show it")
    _pages(settings, finished.rows, run_id)
    _say(f"done in {time.monotonic() - started:.0f} s, {time.monotonic() - fetched:.0f} s of them after the downloads")


def _fetch(names: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", _FETCH, *names], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Terminal(f"fetching failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")


def _answers() -> list[dict[str, Any]]:
    from ptpipeline.serving.predictor import load

    rows: list[dict[str, Any]] = []
    for name in TASKS:
        texts = [text for task, text in SAMPLES if task == name]
        rows += [answer_row(answer, text) for text, answer in zip(texts, load(name).predict(texts), strict=True)]
    return rows


def _pages(settings: Settings, rows: list[dict[str, Any]], run_id: str) -> None:
    for row in rows:
        print(f"  {row['task']} version {row['version']} in MLflow   {row['page']}")
    print(f"  templates on MLflow's Prompts page   {settings.mlflow}/#/prompts")
    print(f"  the flow run in Prefect   {str(settings.prefect).removesuffix('/api')}/runs/flow-run/{run_id}")
    print(
        'try: .venv/bin/ptp predict movie-sentiment "An instant classic."   .venv/bin/ptp history '
        "movie-sentiment   make down"
    )


def _say(line: str) -> None:
    print(f"\n== {line}", flush=True)


def main() -> None:
    """Run it; an error is one line, and the stack stays up for a look at its logs unless KEEP=0."""
    try:
        quickstart()
    except PtpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if os.environ.get("KEEP") == "0":
            down(load_settings().home)


if __name__ == "__main__":
    main()
