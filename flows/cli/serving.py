"""Verbs of `ptp` that serve prompts over HTTP."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import Json, app
from flows.cli.terminal import log_plainly, say

TokenPath = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        metavar="FILE",
        readable=False,
        help="The file of tokens; by default serving/tokens.json in PTP_HOME.",
    ),
]


@app.command()
def serve(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Listen on this port; 0 takes a free one.")
    ] = 8080,
    host: Annotated[str, typer.Option("--host", help="Listen on this address.")] = "127.0.0.1",
    base: Annotated[
        str | None, typer.Option("--base", help="The base model to load, if the tasks use several.")
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            "--upstream",
            metavar="URL",
            help="Let this vLLM server compute (key: PTP_UPSTREAM_KEY); only the base's embeddings are loaded here.",
        ),
    ] = None,
    tokens: TokenPath = None,
    anyone: Annotated[
        bool, typer.Option("--anyone", help="Ask for no token: every user of this machine may ask. Loopback only.")
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option("--tls-cert", metavar="FILE", readable=False, help="Certificate chain for TLS, in PEM."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", metavar="FILE", readable=False, help="Its private key, in PEM, without a password."),
    ] = None,
    drain: Annotated[
        float,
        typer.Option(
            "--drain",
            min=0,
            max=3600,
            help="After SIGTERM take requests for so many seconds more, while /readyz answers 503.",
        ),
    ] = 5.0,
    poll: Annotated[
        float,
        typer.Option("--poll", min=0.5, max=15, help="Look at the store for promotions every so many seconds."),
    ] = 2.0,
    log_texts: Annotated[
        bool, typer.Option("--log-texts", help="Write every text that is asked into the log.")
    ] = False,
) -> None:
    """Answer texts over HTTP with the promoted versions.

    Requests have the form of OpenAI's API. One base model serves every task; a promoted version answers within seconds.
    It reads the object store alone.
    """
    from ptpipeline.server.listen import Address
    from ptpipeline.server.serve import Options
    from ptpipeline.server.serve import serve as start
    from ptpipeline.settings import load_settings

    log_plainly(logging.INFO)
    settings = load_settings()
    address = Address(host, port, tls_cert, tls_key, drain)
    start(settings, Options(address, None if anyone else _find_file(tokens), base, upstream, log_texts, poll))


@app.command()
def token(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Whose token; without a name, list all.")] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="A task that it may use; repeat. By default all.")
    ] = None,
    per_minute: Annotated[
        int | None,
        typer.Option(
            "--per-minute",
            min=1,
            max=1_000_000,
            help="Texts that it may ask in a minute; each server counts for itself.",
        ),
    ] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the token away; a running server refuses it.")] = False,
    tokens: TokenPath = None,
    as_json: Json = False,
) -> None:
    """Make a token for clients of `ptp serve`.

    It is printed once; the file holds only its hash. To make one of the same name again replaces the first.
    """
    from flows.cli.render import print_table
    from ptpipeline.server.callers import make_token, read_tokens, revoke_token

    path = _find_file(tokens)
    if name is None:
        if task or per_minute or revoke:
            raise typer.BadParameter("name the token first: `ptp token NAME`")
        rows = [
            {"name": one.name, "tasks": ", ".join(one.tasks) or "all", "per_minute": one.per_minute}
            for one in read_tokens(path).tokens
        ]
        print_table(rows, as_json, "no token is made yet: `ptp token NAME` makes one")
    elif revoke:
        revoke_token(path, name)
        say(f"{name}: its token opens nothing any more", sys.stderr)
    else:
        say(make_token(path, name, task or [], per_minute))
        _tell_unknown(task or [])


def _tell_unknown(tasks: list[str]) -> None:
    """Tell on standard error which tasks of a token have no file here: it opens nothing under a misspelt name."""
    from ptpipeline.settings import load_settings

    folder = load_settings().tasks
    for task in tasks:
        if not (folder / f"{task}.yaml").is_file():
            say(f"--task {task}: there is no {folder}/{task}.yaml; if it is misspelt, make the token again", sys.stderr)


def _find_file(path: Path | None) -> Path:
    from ptpipeline.settings import load_settings, resolve_path

    return load_settings().home / "serving" / "tokens.json" if path is None else resolve_path(path)
