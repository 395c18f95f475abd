"""`make quickstart`: fetch demo data and base model, start the stack, deploy and run the nightly flow, print results.

Environment: KEEP=0 stops the stack afterwards; by default it stays up so that its pages open.
"""

import os
import subprocess
import sys
import time
from typing import Any

from flows.cli.render import answer_row, print_table
from flows.cli.terminal import say
from flows.cli.work import follow_to_end
from flows.local.stack import down, up
from flows.requests import NightlyRequest
from flows.server.deploy import deploy
from flows.server.trigger import Finished, trigger
from ptpipeline.errors import PtpError, Terminal
from ptpipeline.private import private_files
from ptpipeline.settings import Settings, load_settings
from ptpipeline.task.folder import sound_tasks

TASKS = ("movie-sentiment", "tweet-sentiment")
SAMPLES = (
    ("movie-sentiment", "A quietly devastating film that stays with you for days."),
    ("movie-sentiment", "Two hours of noise in search of a plot."),
    ("tweet-sentiment", "ugh, my flight got cancelled again :("),
)
COLUMNS = ("task", "metric", "zero_shot", "candidate", "champion", "verdict", "version", "bytes", "status")

# Runs in a process of its own, so that the memory of the model's conversion is free again before training.
_FETCH = """
import sys
from ptpipeline.data.sources import read_rows
from ptpipeline.models.base import prepare_base
from ptpipeline.settings import load_settings
from ptpipeline.task.folder import find_task
settings = load_settings(starting=True)
for name in sys.argv[1:]:
    task = find_task(settings.tasks, name)
    read_rows(task, settings.home)
    prepare_base(task.base_model, settings)
"""


def quickstart() -> None:
    """Go the whole way from nothing to promoted prompts; raise PtpError if a step fails."""
    started = time.monotonic()
    settings = load_settings(starting=True)
    _print_step("1/5 fetching the demo data and the base model (a few hundred MB the first time)")
    _fetch(TASKS)
    fetched = time.monotonic()
    _print_step(f"2/5 starting Prefect, MLflow and S3 on loopback, data in {settings.home}")
    up(settings.home)
    settings = load_settings()
    deploy(settings, sound_tasks(settings.tasks)[0])
    _print_step("3/5 triggering the nightly flow through the Prefect API")
    run_id = trigger(str(settings.prefect), "nightly", NightlyRequest(tasks=list(TASKS), reason="quickstart"))
    finished = follow_to_end(str(settings.prefect), run_id)
    _print_night(finished)
    if finished.state != "COMPLETED":
        raise Terminal(f"the nightly flow ended {finished.state}: {finished.message}")
    _print_step("4/5 answers of the promoted prompts, read from S3 alone")
    print_table(_answer_samples(), as_json=False)
    _print_step("5/5 the pages that show it; `.venv/bin/ptp open` signs your browser in")
    _print_pages(settings, finished.rows, run_id)
    ended = time.monotonic()
    _print_step(f"done in {ended - started:.0f} s, {ended - fetched:.0f} s of them after the downloads")


def _print_night(finished: Finished) -> None:
    _print_step(f"flow run {finished.state}: {finished.message}")
    rows = [{name: "-" if row.get(name) is None else row[name] for name in COLUMNS} for row in finished.rows]
    print_table(rows, as_json=False)
    for row in finished.rows:
        say(f"{row['task']}: {row['reason']}")


def _fetch(names: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", _FETCH, *names], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Terminal(
            f"fetching demo data or base model failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )


def _answer_samples() -> list[dict[str, Any]]:
    from ptpipeline.serving.predictor import load

    rows: list[dict[str, Any]] = []
    for name in TASKS:
        texts = [text for task, text in SAMPLES if task == name]
        rows += [answer_row(answer, text) for text, answer in zip(texts, load(name).predict(texts), strict=True)]
    return rows


def _print_pages(settings: Settings, rows: list[dict[str, Any]], run_id: str) -> None:
    for row in rows:
        say(f"  {row['task']} version {row['version']} in MLflow   {row['page']}")
    say(f"  templates on MLflow's Prompts page   {settings.mlflow}/#/prompts")
    say(f"  the flow run in Prefect   {str(settings.prefect).removesuffix('/api')}/runs/flow-run/{run_id}")
    say("try:")
    say("  .venv/bin/ptp open")
    say('  .venv/bin/ptp predict movie-sentiment "An instant classic."')
    say("  .venv/bin/ptp history movie-sentiment")
    say("  make down")


def _print_step(line: str) -> None:
    say("")
    say(f"== {line}")


def main() -> None:
    """Run the quickstart; print an error as one line. The stack stays up, with its logs, unless KEEP=0."""
    try:
        with private_files():
            quickstart()
    except PtpError as error:
        say(f"error: {error}", sys.stderr)
        sys.exit(1)
    finally:
        if os.environ.get("KEEP") == "0":
            down(load_settings().home)


if __name__ == "__main__":
    main()
