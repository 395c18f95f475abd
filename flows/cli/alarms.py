"""The verb of `ptp` that notices silence and sends events, and what `ptp status` says of both."""

import sys

import typer

from flows.cli.app import NO, Json, app, open_registry
from flows.cli.terminal import log_plainly, say
from ptpipeline.errors import NotFound


@app.command()
def alarm(as_json: Json = False) -> None:
    """Notice what should have happened and did not, and send events.

    Noticed are a task without a verdict for longer than its max_age, a night that did not start and one that does not
    end; exit code 4 if there is any. The deployment `alarm` does the same every five minutes. A dead worker runs no
    deployment, so let cron on another machine call this too.
    """
    from flows.cli.render import print_table
    from flows.on_demand.silence import find_overdue, tell
    from flows.server.events import send_events
    from ptpipeline.settings import load_settings

    settings, registry = load_settings(), open_registry(writing=True)
    log_plainly()
    overdue = find_overdue(registry, settings)
    tell(registry, overdue)
    sent = send_events(settings, registry.ledger.database)
    print_table(overdue, as_json, "nothing is overdue")
    if settings.events:
        say(f"{sent.delivered} events delivered", sys.stderr)
    if overdue or sent.failures:
        raise typer.Exit(NO)


def say_silence() -> None:
    """Say on standard error what is overdue, and which targets of events were not told; raise typer.Exit if any is.

    Without a ledger there is nothing to say.
    """
    from flows.on_demand.silence import find_overdue
    from flows.server.events import read_targets
    from ptpipeline.settings import load_settings
    from registry.ledger.events import find_backlog

    settings = load_settings()
    try:
        registry = open_registry()
    except NotFound:  # neither a stack nor a project: what was said of the stack says so
        return
    lines = [f"overdue: {one.sentence}" for one in find_overdue(registry, settings)]
    for target in read_targets(settings):
        backlog = find_backlog(registry.ledger.database, target.name)
        if backlog.events:
            lines.append(f"events: target {target.name} did not take {backlog.events}, the oldest of {backlog.oldest}")
    for line in lines:
        say(line, sys.stderr)
    if lines:
        raise typer.Exit(NO)
