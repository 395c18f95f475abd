"""Watches the aliases in MLflow of the local stack: what a person sets there is judged within half a minute.

`python -m flows.local.watcher` looks every four seconds, by one small request. It does nothing more while nothing
changes: MLflow's own client is imported by the first edit. The scheduled `reconcile` mends what this process misses.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx

from flows.logs import write_plainly
from flows.stages.context import select_tasks
from ptpipeline.errors import PtpError
from ptpipeline.foreign import parse_json, parsing
from ptpipeline.settings import Settings, load_settings
from registry.registry import open_for_writing
from registry.repair.reconcile import reconcile_aliases
from registry.versions.mlflow_edit import seconds_apart

POLL_SECONDS = 4.0
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
        registry = open_for_writing(self._settings)
        declared = {one.name: one for one in select_tasks(self._settings).tasks}
        actions = reconcile_aliases(registry, declared, task)
        for action in actions:
            log.info("%s: %s", action.task, action.what)
        return all(action.done for action in actions)


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
    watcher = Watcher(load_settings())
    while True:
        try:
            watcher.look()
        except (PtpError, httpx.HTTPError) as error:
            log.warning("the aliases in MLflow were not looked at (%s); again in %.0f s", error, POLL_SECONDS)
        except Exception:
            log.exception("the aliases in MLflow were not looked at, for a reason that ptpipeline does not know")
        time.sleep(watcher.pause())


if __name__ == "__main__":
    main()
