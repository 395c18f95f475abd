"""`ptp serve`: the base, what answers with it, the versions of the store, and the address that they answer on."""

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI

from ptpipeline.errors import PtpError, SettingsError, TimedOut, place_of
from ptpipeline.models.base import prepare_base
from ptpipeline.server.application import make_application
from ptpipeline.server.callers import Tokens
from ptpipeline.server.door import Ending
from ptpipeline.server.limits import Limits
from ptpipeline.server.listen import END_SECONDS, Address, Server
from ptpipeline.server.metrics import Metrics
from ptpipeline.server.service import Service
from ptpipeline.serving.answerer import Answerer
from ptpipeline.serving.batcher import Batcher
from ptpipeline.serving.engine import open_engine
from ptpipeline.serving.gateway import open_gateway
from ptpipeline.serving.last_good import LastGood, own_folder
from ptpipeline.serving.live import EVERY, Live
from ptpipeline.settings import Settings, check_place, is_own_host
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.signed import open_signed_store
from ptpipeline.task.folder import sound_tasks

ALIVE_SECONDS = 1.0  # between two looks at what computes

log = logging.getLogger("ptpipeline.server")


class Options(NamedTuple):
    """What `ptp serve` was asked for. tokens: the file that says who may ask; None lets in everybody on this machine.

    base: the one to load, if the tasks use several. upstream: a vLLM server that answers instead of this machine. poll:
    seconds between two looks at the store.
    """

    address: Address
    tokens: Path | None
    base: str | None = None
    upstream: str | None = None
    log_texts: bool = False
    poll: float = EVERY


def serve(settings: Settings, options: Options) -> None:
    """Serve the store's prompts until a signal ends it.

    Raises SettingsError if the address is taken, if nobody could ask, if everybody of a network could, or if the store
    is a folder that is not there; NotFound for a base that is not declared; what loading the base raises; and PtpError
    if a defect ends the thread that computes.
    """
    check_place(settings, "store")
    tokens, ending = _open_tokens(options), Ending()
    store = open_signed_store(settings)
    name, tasks = _choose_base(settings, options.base)
    server = Server(options.address, ending)
    reported = re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}-{server.port}").lstrip("._-")
    _check_folder(store, own_folder(settings.home, reported))
    prepared = prepare_base(name, settings)
    upstream = options.upstream
    answerer = open_gateway(prepared, upstream) if upstream else Batcher(open_engine(prepared, settings))
    live = Live(store, answerer, settings.home, server=reported, tasks=tasks, every=options.poll)

    @contextlib.asynccontextmanager
    async def run(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(asyncio.to_thread(_start, live))  # meanwhile probes are answered
        watching = asyncio.create_task(_watch(answerer, server))
        yield
        watching.cancel()
        with contextlib.suppress(TimedOut):
            await answerer.drain(END_SECONDS)
        await asyncio.to_thread(live.stop)
        await starting
        await asyncio.to_thread(answerer.close)

    service = Service(live, answerer, Limits(), Metrics(live, answerer), options.log_texts)
    log.info("serving at %s", server.url)
    server.run(make_application(service, tokens, ending, run))


async def _watch(answerer: Answerer, server: Server) -> None:
    """End the server if nothing computes any more: whoever restarts it when it ends mends that, and nobody else."""
    while answerer.observe().alive:
        await asyncio.sleep(ALIVE_SECONDS)
    server.end(PtpError("the thread that computes ended by a defect, which is told above; start the server again"))


def _start(live: Live) -> None:
    try:
        live.start()
    except PtpError as error:
        log.error("%s", error)
    except Exception as error:  # noqa: BLE001 - whoever asks is told that nothing is ready, and this is why
        log.error("%s", place_of(error))
    log.info("versions loaded: %d", live.observe().held)


def _check_folder(store: ObjectStore, own: Path) -> None:
    """Raise SettingsError if the store is a folder that is not there, and this server never answered from it: it would
    make the folder, and be ready to answer for no task.
    """
    folder = store.url.removeprefix("file://")
    if folder != store.url and not os.path.isdir(folder) and not LastGood(own, store.where).store.root.is_dir():
        raise SettingsError(
            f"{store.url}: there is no such folder; correct PTP_STORE, or register a version there first "
            "(`ptp run TASK`)"
        )


def _open_tokens(options: Options) -> Tokens | None:
    """Return who may ask; raise SettingsError if that is nobody, or everybody who reaches a network's address."""
    if options.tokens is None:
        if not is_own_host(options.address.host):
            raise SettingsError(
                f"--anyone lets in whoever reaches this server, so it listens on loopback alone, not on "
                f"{options.address.host}: make a token with `ptp token NAME`, and leave --anyone out"
            )
        return None
    tokens = Tokens(options.tokens)
    if not len(tokens):
        raise SettingsError(
            f"{options.tokens}: nobody may ask yet; make a token with `ptp token NAME`, or let in every user of this "
            "machine with --anyone"
        )
    return tokens


def _choose_base(settings: Settings, asked: str | None) -> tuple[str, list[str]]:
    """Return the base to load, and the tasks to serve: none means all of the store.

    The tasks are those of the folder. Raises SettingsError if they use several bases and none was asked for.
    """
    tasks, _ = sound_tasks(settings.tasks)
    bases = sorted({task.base_model for task in tasks})
    if asked is None and len(bases) != 1:
        found = f"the tasks use the bases {', '.join(bases)}" if bases else f"no task is in {settings.tasks}"
        raise SettingsError(f"{found}: name the base to serve with --base, and start one server for each")
    name = asked or bases[0]
    own = sorted(task.name for task in tasks if task.base_model == name)
    return name, own if len(bases) > 1 else []
