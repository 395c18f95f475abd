"""The alarm flow: notices what should have happened and did not, and tells others what the ledger holds for them."""

from functools import partial

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.on_demand.silence import Overdue, notice
from flows.requests import AlarmRequest
from flows.server.events import send_events
from flows.states import name_this_run
from flows.steps import open_context, step
from registry.card.markdown import escape

EVERYTHING = AlarmRequest()


@flow(name="alarm", flow_run_name=name_this_run, persist_result=False)
def alarm(request: AlarmRequest = EVERYTHING) -> list[str]:
    """Return what is overdue, one sentence each, and show it as the artifact `alarm`; nothing if all is as it should
    be.
    """
    context = open_context()
    overdue = step("look for silence", partial(notice, context.registry.ledger, context.settings))
    create_markdown_artifact(key="alarm", markdown=render(overdue), description=f"{len(overdue)} overdue")
    step("send events", partial(send_events, context.settings, context.registry.ledger.database))
    return [one.sentence for one in overdue]


def render(overdue: list[Overdue]) -> str:
    """Render what is overdue as Markdown."""
    lines = [f"- **{escape(one.about)}** since {one.since[:16]} UTC: {escape(one.sentence)}" for one in overdue]
    return "\n".join(["# Overdue", "", *(lines or ["Nothing: all tasks and nights are as they should be."])])
