"""Watches over the local stack: what a person sets in MLflow is judged within half a minute, and every five minutes
it is asked what is overdue and what has to be mended.

`python -m flows.local.watcher` looks at the aliases in MLflow every four seconds, by one small request, and does
nothing more while nothing changes. What the deployments `alarm` and `reconcile` do on a schedule of a shared Prefect
server, this process does itself: as runs, the two would take 12 s of a processor each time, 4 % of a core.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from flows.logs import write_plainly
from flows.on_demand.silence import sound_alarm
from flows.requests import AlarmRequest
from flows.server.trigger import trigger
from flows.stages.context import select_tasks
from ptpipeline.errors import PtpError
from ptpipeline.foreign import parse_json, parsing
from ptpipeline.settings import Settings, load_settings
from ptpipeline.task.task import Task
from registry.ledger.ledger import Ledger
from registry.registry import Registry, open_for_writing
from registry.repair.reconcile import reconcile, reconcile_aliases
from registry.versions.mlflow_edit import seconds_apart
from registry.versions.projection import FOLLOW_SECONDS

POLL_SECONDS = 4.0
ROUND_SECONDS = 300.0  # between two rounds; what is overdue is noticed in time (flows/on_demand/silence.py)
AGAIN_SECONDS = 30.0  # until what could not be judged is looked at again
MAX_PAGES = 100

log = logging.getLogger("ptpipeline.watcher")


class Watcher:
    """Keeps in mind what MLflow's aliases named at the last look, and which tasks are to be looked at again, when."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: dict[str, str] | None = None
        self._due: dict[str, float] = {}
        self._client = connect()

    def pause(self) -> float:
        """Return for how many seconds to wait until the next look."""
        due = min(self._due.values(), default=float("inf")) - time.monotonic()
        return max(0.0, min(POLL_SECONDS, due))

    def look(self) -> list[str]:
        """Look once, and judge the aliases of each task where something changed or is due; return these tasks."""
        shown = dict(read_aliases(self._client, str(self._settings.mlflow)))
        seen, self._seen = shown if self._seen is None else self._seen, shown
        changed = {task for task in shown.keys() | seen.keys() if shown.get(task) != seen.get(task)}
        clock = time.monotonic()
        tasks = sorted(changed | {task for task, at in self._due.items() if at <= clock})
        for task in tasks:
            planned = self._due.get(task, 0.0)
            self._due[task] = clock + AGAIN_SECONDS  # if the look fails
            if self._judge(task):
                del self._due[task]
            else:  # a change that comes between the two looks at an edit does not delay the second
                self._due[task] = planned if planned > clock else time.monotonic() + seconds_apart() + 0.5
        return tasks

    def _judge(self, task: str) -> bool:
        """Return whether nothing is left to be done."""
        with open_registry(self._settings) as (registry, declared):
            actions = reconcile_aliases(registry, declared, task)
        for action in actions:
            log.info("%s: %s", action.task, action.what)
        return all(action.done for action in actions)


class Rounds:
    """Sounds the alarm and reconciles, every five minutes; neither waits for what the other needs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._due = time.monotonic() + ROUND_SECONDS
        self._shown: set[str] | None = None

    def make(self) -> None:
        """Make a round if it is time for one."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + ROUND_SECONDS
            attempt("the alarm was not sounded", self.sound_alarm)
            attempt("nothing was reconciled", self.reconcile)

    def sound_alarm(self) -> None:
        """Tell what is overdue, by events; if it is not what the run before showed on Prefect's page, start another."""
        ledger = Ledger(self._settings.ledger)  # alone: this has to work without the store, too
        try:
            overdue, sent = sound_alarm(ledger, self._settings)
        finally:
            ledger.close()
        for target, why in sent.failures.items():
            log.warning("events: target %s: %s", target, why)
        found = {f"{one.kind} {one.about} {one.since}" for one in overdue}  # without the sentence, which counts hours
        if found != self._shown:
            trigger(str(self._settings.prefect), "alarm", AlarmRequest())
            self._shown = found

    def reconcile(self) -> None:
        """Bring pointers and MLflow to what the ledger says; wait for no lease of a killed process: a round follows."""
        with open_registry(self._settings) as (registry, declared):
            for action in reconcile(registry, declared, wait=FOLLOW_SECONDS):
                log.info("%s: %s", action.task, action.what)


@contextmanager
def open_registry(settings: Settings) -> Iterator[tuple[Registry, dict[str, Task]]]:
    """Give the registry, to be written to, and the declared tasks by name, until the block ends."""
    registry = open_for_writing(settings)
    try:
        yield registry, {one.name: one for one in select_tasks(settings).tasks}
    finally:
        registry.ledger.close()


def attempt(failure: str, work: Callable[[], object]) -> None:
    """Do the work; an error is logged behind these words, and ends nothing."""
    try:
        work()
    except (PtpError, httpx.HTTPError) as error:
        log.warning("%s: %s", failure, error)
    except Exception:
        log.exception("%s, for a reason that ptpipeline does not know", failure)


def connect() -> httpx.Client:
    """Return a client with the stack's credential; making one for every look would cost more than the look."""
    owner = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
    return httpx.Client(auth=owner, timeout=10, trust_env=False)


def read_aliases(client: httpx.Client, mlflow: str) -> Iterator[tuple[str, str]]:
    """Yield each registered model with what its aliases name, as text that may be compared.

    Raises httpx.HTTPError if MLflow does not answer, ArtifactError if it answers something else.
    """
    token = ""
    for _ in range(MAX_PAGES):
        query = {"max_results": "1000", **({"page_token": token} if token else {})}
        url = f"{mlflow}/api/2.0/mlflow/registered-models/search"
        answer = client.get(url, params=query)
        answer.raise_for_status()
        told = f"MLflow's answer to {url}"
        page: dict[str, Any] = parse_json(answer.content, told)
        with parsing(told, "it is no list of models"):
            models = [(str(model["name"]), _show(model)) for model in page.get("registered_models", [])]
            token = page.get("next_page_token", "")
        yield from models
        if not token:
            return


def _show(model: dict[str, Any]) -> str:
    return json.dumps([model.get("aliases"), model.get("tags")], sort_keys=True)


def main() -> None:
    """Watch until the process is ended; a failed look is logged and repeated."""
    write_plainly()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("ptpipeline", "registry"):
        logging.getLogger(name).setLevel(logging.INFO)
    settings = load_settings()
    watcher, rounds = Watcher(settings), Rounds(settings)
    while True:
        attempt(f"the aliases in MLflow were not looked at; again in {POLL_SECONDS:.0f} s", watcher.look)
        rounds.make()
        time.sleep(watcher.pause())


if __name__ == "__main__":
    main()
