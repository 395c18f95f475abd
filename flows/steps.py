"""A stage as a Prefect task run: only wrapping; the order of the stages is `stages.chain`'s."""

import atexit
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from prefect import task as prefect_task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL
from prefect.tasks import Task

from flows.logs import write_plainly
from flows.progress import Bars
from flows.server.api import call
from flows.stages.chain import hide_message
from flows.stages.context import Context
from ptpipeline.errors import PtpError, Transient
from ptpipeline.settings import load_settings
from registry.ledger.database import outlasting

# Seconds before each retry: a server may be away for ten minutes in all. All runs of a night lose the same server at
# the same time, so each waits up to half as long again, by chance.
DELAYS = [2.0, 4.0, 8.0, 15.0, 30.0, *[60.0] * 9]
_JITTER = 0.5
LEFT = "prefect.flow-run.left"  # an event of our own; the automation waits for any of a flow run

Result = TypeVar("Result")


@outlasting
def open_context() -> Context:
    """Open the worker's settings; from here on the library's progress lines reach the run's page.

    A store or ledger that is away is waited for, as in every step.
    """
    write_plainly()
    for name in ("ptpipeline", "registry"):
        logging.getLogger(name).setLevel(logging.INFO)  # Prefect's extra loggers keep the root's level, WARNING
    context = Context.open(load_settings())
    context.display = Bars()
    if deployment.id:  # heartbeats have ended then, wherever Prefect's engine leaves the flow
        atexit.register(report_suspended, PREFECT_API_URL.value(), str(flow_run.id), str(deployment.id))
    return context


def step(name: str, work: Callable[[], Result], /) -> Result:
    """Run `work` as a task run of that name; its error is the flow's own, and only a Transient one is retried."""

    @prefect_task(
        name=name.split()[0],
        task_run_name=name,
        retries=len(DELAYS),
        retry_delay_seconds=DELAYS,
        retry_jitter_factor=_JITTER,
        retry_condition_fn=_is_transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run() -> Result:
        return run_plainly(work)

    return run()


def report_suspended(api: str, run: str, deployment_: str) -> None:
    """Tell Prefect that the process of a suspended run has ended: else the run, silent from now on, counts as crashed
    (flows.server.automations). Another process takes it when somebody resumes it.
    """
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": LEFT,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "related": [
            {"prefect.resource.id": f"prefect.deployment.{deployment_}", "prefect.resource.role": "deployment"}
        ],
    }
    with suppress(PtpError):
        if call("GET", f"{api}/flow_runs/{run}")["state_type"] == "PAUSED":
            call("POST", f"{api}/events", [event])


def run_plainly(work: Callable[[], Result]) -> Result:
    """Return what the work returns; raise an error that nobody expected without its message.

    Prefect would keep the message, which may hold a row's text.
    """
    try:
        return work()
    except PtpError:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is
        raise hide_message(error) from None


def _is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), Transient)
