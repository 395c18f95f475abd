"""The verb of `ptp` that notices silence and sends events, and what `ptp status` says of both and of servers."""

import sys

import typer

from flows.cli.app import NO, Json, app, open_registry
from flows.cli.terminal import log_plainly, say
from ptpipeline.errors import NotFound, PtpError


@app.command()
def alarm(as_json: Json = False) -> None:
    """Notice what should have happened and did not, and send events.

    Noticed are a task without a verdict for longer than its max_age, a night that did not start and one that does not
    end; exit code 4 if there is any. The local stack's watcher, or the deployment `alarm`, does the same every five
    minutes. A dead worker runs no deployment, so let cron on another machine call this too.
    """
    from flows.cli.render import print_table
    from flows.on_demand.silence import sound_alarm
    from ptpipeline.settings import check_place, load_settings
    from registry.ledger.ledger import Ledger

    settings = load_settings()
    check_place(settings, "ledger")
    ledger = Ledger(settings.ledger)  # alone: it has to work without the store, too
    log_plainly()
    overdue, sent = sound_alarm(ledger, settings)
    print_table(overdue, as_json, "nothing is overdue")
    if settings.events:
        say(f"{sent.delivered} events delivered", sys.stderr)
    if overdue or sent.failures:
        raise typer.Exit(NO)


def say_silence() -> list[str]:
    """Say on standard error what is overdue, and which targets of events were not told; return the lines.

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
        return []
    lines = [f"overdue: {one.sentence}" for one in find_overdue(registry.ledger, settings)]
    for target in read_targets(settings):
        backlog = find_backlog(registry.ledger.database, target.name)
        if backlog.events:
            lines.append(f"events: target {target.name} did not take {backlog.events}, the oldest of {backlog.oldest}")
    for line in lines:
        say(line, sys.stderr)
    return lines


def say_pauses() -> None:
    """Say on standard error what somebody did in Prefect that keeps runs from starting.

    A pause is meant: nothing is wrong. Without a server that answers there is nothing to say.
    """
    from flows.server.pauses import list_pauses
    from ptpipeline.settings import load_settings

    api = load_settings().prefect
    try:
        lines = list_pauses(api) if api else []
    except PtpError as error:
        lines = [f"what is paused in Prefect is not known: {error}"]
    for line in lines:
        say(line, sys.stderr)


def say_servers(as_json: bool) -> list[str]:
    """Show the servers of prompts that report to the store, and say on standard error where they differ from the
    ledger; return these lines.

    A store that does not answer is such a line too; without a ledger or a server there is nothing to say.
    """
    from flows.cli.render import print_table
    from flows.on_demand.serving import compare_servers, describe_trials
    from ptpipeline.storage.keys import server_key

    try:
        servers = compare_servers(open_registry())
    except NotFound:
        return []
    except PtpError as error:
        lines = [f"what servers answer is not known: {error}"]
    else:
        if servers:
            rows = [
                {key: value for key, value in server.to_json().items() if key not in ("trials", "canaries")}
                | {"behind": len(server.behind)}
                for server in servers
            ]
            print_table(servers if as_json else rows, as_json)
            for sentence in describe_trials(servers):
                say(sentence, sys.stderr)
        lines = [f"{server.server}: {sentence}" for server in servers for sentence in server.behind]
        lines += [
            f"{server.server}: it reported last at {server.at}; if that server is gone, remove "
            f"{server_key(server.server)} from the object store: garbage collection keeps what it held"
            for server in servers
            if server.silent
        ]
    for line in lines:
        say(line, sys.stderr)
    return lines
