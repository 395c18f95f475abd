"""The watch-sources flow: start the nightly flow for each watched task whose source has new rows."""

from prefect import flow

from flows.requests import NightlyRequest, WatchSourcesRequest, key_run
from flows.server.trigger import trigger
from flows.stages.context import select_tasks
from flows.stages.watch import find_changed
from flows.states import name_this_run
from flows.steps import open_context, step
from ptpipeline.errors import SettingsError
from registry.ledger.database import outlasting

EVERYTHING = WatchSourcesRequest()


@flow(name="watch-sources", flow_run_name=name_this_run, persist_result=False)
def watch_sources(request: WatchSourcesRequest = EVERYTHING) -> list[str]:
    """Look at the sources of the tasks with `watch: true`, without reading rows, and start `nightly` for what changed.

    Returns the tasks that have a run for these rows: one per task, rows and day, however often this flow looks.
    """
    context = open_context()
    if context.settings.prefect is None:
        raise SettingsError("PTP_PREFECT is not set for this worker: set it to the API address of your Prefect")
    tasks = select_tasks(context.settings, request.tasks).tasks
    changed = step("watch sources", lambda: find_changed(context, tasks))
    today = outlasting(context.registry.ledger.database.time)()  # the same day on every worker
    for task, key in changed.items():
        asked = NightlyRequest(tasks=[task], reason="new data")
        trigger(context.settings.prefect, "nightly", asked, key_run("nightly", {task: key}, today))
    return list(changed)
