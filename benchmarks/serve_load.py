"""A server of prompts under an open load, while versions are promoted and rolled back, its store goes away and it is
killed.

Another process sends `/v1/classify` and streaming completions at random times at a fixed rate, whatever waits. The
server is `ptp serve` over a real S3 server. Meanwhile the ledger promotes and rolls back versions of both tasks. Then
the S3 server is stopped: it takes connections and answers nothing. In the middle of that the server of prompts is
killed by SIGKILL and started again on its port, where it has to serve from its last good set; then the store returns.

    requests       sent in total
    wrong_version  answers by a version that the alias did not name while the request ran or up to WINDOW seconds
                   before, by an older one than was seen before the request began, or with other probabilities than that
                   version gives when it is asked by its number
    failed         requests without a whole answer, but those that a killed server had taken
    cut            the latter
    p50_ms, p99_ms of the answers to requests that were due outside of the restart
    swap_p95_s     from the moment at which a pointer is in the store until a new request's answer by the new version;
                   unseen counts moves after which the next one came before any such answer
    restart_s      from the kill until the first answer
"""

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import httpx
import torch

from benchmarks.fixtures.load import Answered, Plan, start_load
from benchmarks.fixtures.s3_server import S3Server, free_ports, running_s3
from ptpipeline.models.base import prepare_base
from ptpipeline.models.load import load_base
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.prompts.tensors import pack
from ptpipeline.records.prompts import BaseModelRef, Generation
from ptpipeline.records.versions import VersionName
from ptpipeline.settings import Settings
from ptpipeline.storage import S3Store
from ptpipeline.storage.keys import version_key
from ptpipeline.task.task import Task
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote, rollback

CLASSIFIER, WRITER = "mood", "writer"
WINDOW = 5.0  # seconds within which a server has to follow
BUCKET = "load"
TEXTS = [
    f"{word} film, and {other} story" for word in ("a good", "an awful", "a dull") for other in ("its", "no", "a fine")
]
LABELS = {"negative": " negative", "positive": " positive"}
P = 16
TOKENS = 8  # of a completion
TOLERANCE = 0.02  # of a probability: rows of another batch are rounded otherwise in 16 bits


class Move(NamedTuple):
    """A version that an alias names: from some moment after `began`, and surely from `at` on."""

    task: str
    digest: str
    began: float
    at: float


class Site(NamedTuple):
    """All that the load needs around the server."""

    registry: Registry
    base: str
    environment: dict[str, str]
    port: int
    log: Path
    moves: list[Move]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Kill(NamedTuple):
    """When the server was killed, when it was gone, and when it was ready again."""

    at: float
    gone: float
    back: float


def main() -> None:
    """Run the load and print the figures as JSON on the last line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--base", default="smollm2-135m-wheel", help="a base of base_models.yaml")
    asked.add_argument("--tasks", type=Path, default=Path("tasks"), help="the folder with base_models.yaml")
    asked.add_argument("--moves", type=int, default=100, help="promotions and rollbacks")
    asked.add_argument("--outage", type=float, default=60.0, help="seconds without the store")
    asked.add_argument("--rate", type=float, default=10.0, help="requests per second")
    asked.add_argument("--streams", type=float, default=0.2, help="share of them that are streaming completions")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_s3(Path(folder) / "s3") as s3:
        site = build_site(Path(folder), s3, options)
        print(json.dumps(run(site, s3, options)))


def build_site(folder: Path, s3: S3Server, options: argparse.Namespace) -> Site:
    """Fill a store with two versions of both tasks, and promote the first ones."""
    os.environ.update(s3.environment)
    boto3.client("s3", endpoint_url=s3.endpoint).create_bucket(Bucket=BUCKET)
    registry = Registry(Ledger(f"sqlite:///{folder}/ledger.db"), S3Store(BUCKET, endpoint=s3.endpoint))
    settings = Settings(home=folder / "home", tasks=options.tasks.absolute())
    base = load_base(prepare_base(options.base, settings), "float32")
    for task in (CLASSIFIER, WRITER):
        for number in (1, 2):
            generator = torch.Generator().manual_seed(number)
            ids = torch.randint(base.model.config.vocab_size, (P,), generator=generator)
            add_version(registry, pack(base.embed(ids).detach(), "float16", describe(task, base.ref)), number)
    environment = {
        **os.environ,
        "PTP_HOME": str(folder / "served"),
        "PTP_STORE": f"s3://{BUCKET}",
        "PTP_S3_ENDPOINT": s3.endpoint,
        "PTP_TASKS": str(options.tasks.absolute()),
    }
    site = Site(registry, options.base, environment, free_ports(1)[0], folder / "server.log", [])
    for task in (CLASSIFIER, WRITER):
        move(site, task, 1)
    return site


def describe(task: str, base: BaseModelRef) -> dict[str, Any]:
    """Return the manifest's fields of a prompt that nobody trained."""
    own = {"labels": LABELS} if task == CLASSIFIER else {"labels": {}, "generate": Generation(max_new_tokens=TOKENS)}
    return {
        "task": task,
        "method": "prompt",
        "placement": "before_bos",
        "base_model": base,
        "template": "{text}\nSentiment:",
        "max_input_tokens": 100,
        "snapshot": "c" * 64,
        "recipe": "d" * 64,
        "training_key": "e" * 64,
        "seed": 0,
        "engine_version": 1,
        **own,
    }


def add_version(registry: Registry, artifact: Artifact, number: int) -> None:
    """Store and register a prompt."""
    task, digest = artifact.manifest.task, write_artifact(registry.store, artifact)
    registry.ledger.add_version(task, digest)
    name = VersionName(task=task, number=number, digest=digest)
    registry.store.create(version_key(task, number), name.model_dump_json().encode())


def move(site: Site, task: str, number: int) -> None:
    """Let production name the version: by a promotion, or by a rollback if it named it before."""
    declared = Task.model_validate(
        {
            "name": task,
            "base_model": site.base,
            "data": {"source": {"path": "rows.csv", "format": "csv"}, "text": "text", "label": "label"},
            "template": "{text}\nSentiment:",
            "labels": LABELS,
            "gate": {"metric": "accuracy", "minimum": 0.5},
        }
    )
    cause, began = Cause("the load", f"move {len(site.moves)}", override=True), time.monotonic()
    if number in {row.version for row in site.registry.ledger.history(task)}:
        row = rollback(site.registry, task, cause, number)
    else:
        row = promote(site.registry, declared, number, cause)
    site.moves.append(Move(task, row.digest, began, time.monotonic()))


# ---------------------------------------------------------------- the run


def run(site: Site, s3: S3Server, options: argparse.Namespace) -> dict[str, Any]:
    """Serve under load while all of it happens; return the figures."""
    server, dice = start_server(site), random.Random(0)
    try:
        truth = ask_each_version(site)
        plan = Plan(site.url, options.rate, TEXTS, CLASSIFIER, WRITER, options.streams, TOKENS)
        sender, ours = start_load(plan)
        numbers = [(task, number) for number in (2, 1) for task in (CLASSIFIER, WRITER)]
        for count in range(options.moves):
            if count == options.moves * 9 // 10:
                time.sleep(2 * WINDOW)
                with without_store(s3):
                    time.sleep(options.outage / 2)
                    server, kill = restart(site, server)
                    time.sleep(max(0.0, options.outage - (time.monotonic() - kill.at) - options.outage / 2))
                time.sleep(2 * WINDOW)
            move(site, *numbers[count % 4])
            time.sleep(dice.uniform(4.0, 7.0))
        time.sleep(WINDOW)
        ours.send("enough")
        answered = ours.recv()
        sender.join()
    finally:
        server.kill()
        server.wait()
    return compute_figures(answered, site.moves, kill, truth)


def start_server(site: Site) -> subprocess.Popen[bytes]:
    """Start `ptp serve` and wait until it is ready."""
    command = [sys.executable, "-m", "flows.cli", "serve", f"--port={site.port}", "--anyone", f"--base={site.base}"]
    with site.log.open("ab") as log:
        server = subprocess.Popen(command, env=site.environment, stdout=log, stderr=log)
    while True:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended: {site.log.read_text()[-2000:]}")
        with suppress(httpx.TransportError):
            if httpx.get(f"{site.url}/readyz", timeout=10, trust_env=False).status_code == 200:
                return server
        time.sleep(0.1)


def restart(site: Site, server: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], Kill]:
    """Kill the server and start it again."""
    at = time.monotonic()
    server.kill()
    server.wait()
    gone = time.monotonic()
    again = start_server(site)
    return again, Kill(at, gone, time.monotonic())


@contextmanager
def without_store(s3: S3Server) -> Iterator[None]:
    """Let the S3 server take connections and answer nothing until the block ends."""
    os.kill(s3.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(s3.process.pid, signal.SIGCONT)


def ask_each_version(site: Site) -> dict[tuple[str, int], float]:
    """Return the probability that each version of the classifier gives to each text, asked by its number."""
    found = {}
    with httpx.Client(base_url=site.url, timeout=120, trust_env=False) as client:
        for number in (1, 2):
            for place, text in enumerate(TEXTS):
                answer = client.post("/v1/classify", json={"model": f"{CLASSIFIER}@{number}", "input": text}).json()
                found[answer["digest"], place] = answer["data"][0]["probabilities"]["positive"]
    return found


# ---------------------------------------------------------------- what came of it


def compute_figures(
    answered: Sequence[Answered], moves: Sequence[Move], kill: Kill, truth: dict[tuple[str, int], float]
) -> dict[str, Any]:
    """Return what the module's head names."""
    whole = [one for one in answered if not one.fault]
    cut = [
        one
        for one in answered
        if one.fault == "cut" and one.taken <= kill.gone and kill.at <= one.ended <= kill.gone + WINDOW
    ]
    faults = [one.fault for one in answered if one.fault and one not in cut]
    seconds = sorted(one.ended - one.sent for one in whole if not kill.at - WINDOW <= one.sent <= kill.back)
    swaps = [
        seconds for task in (CLASSIFIER, WRITER) for seconds in list_swaps(whole, [m for m in moves if m.task == task])
    ]
    wrong = sum(
        count_wrong(
            [one for one in whole if (one.kind == "stream") == (task == WRITER)], [m for m in moves if m.task == task]
        )
        for task in (CLASSIFIER, WRITER)
    )
    strange = [
        one
        for one in whole
        if one.kind == "classify" and abs(truth.get((one.digest, one.text), 9.0) - one.probability) > TOLERANCE
    ]
    seen = sorted(swap for swap in swaps if math.isfinite(swap))
    for fault in sorted(set(faults))[:5]:
        print(f"failed: {fault}", file=sys.stderr)
    return {
        "requests": len(answered),
        "wrong_version": wrong + len(strange),
        "failed": len(faults),
        "cut": len(cut),
        "p50_ms": round(statistics.median(seconds) * 1000, 1),
        "p99_ms": round(seconds[int(len(seconds) * 0.99)] * 1000, 1),
        "swap_p95_s": round(seen[int(len(seen) * 0.95)], 2),
        "swap_max_s": round(seen[-1], 2),
        "swaps": len(seen),
        "unseen": len(swaps) - len(seen),
        "restart_s": round(min(one.ended for one in whole if one.taken > kill.at) - kill.at, 1),
        "cores": os.cpu_count(),
    }


def list_swaps(whole: Sequence[Answered], moves: Sequence[Move]) -> list[float]:
    """Return for each move of a task the seconds until a request that began after it was answered by its version."""
    swaps = []
    ends = [*(after.began for after in moves[2:]), math.inf]
    for move, end in zip(moves[1:], ends, strict=False):  # one that was never moved has an end too many
        first = [one.ended for one in whole if one.digest == move.digest and move.at <= one.taken < end]
        swaps.append(min(first) - move.at if first else math.inf)
    return swaps


def count_wrong(whole: Sequence[Answered], moves: Sequence[Move]) -> int:
    """Return how many answers of a task came from a version that they must not come from."""
    wrong, newest = 0, -1
    ended = sorted(whole, key=lambda one: one.ended)
    for one in sorted(whole, key=lambda one: one.taken):
        while ended and ended[0].ended < one.taken:
            places = find_places(ended.pop(0), moves)
            newest = max(newest, min(places, default=-1))
        places = find_places(one, moves)
        wrong += max(places, default=-1) < max(newest, 0)
    return wrong


def find_places(one: Answered, moves: Sequence[Move]) -> list[int]:
    """Return the moves that may have led to the answer: of its version, begun before it ended, and not over long."""
    ends = [*(move.at for move in moves[1:]), math.inf]
    return [
        place
        for place, (move, end) in enumerate(zip(moves, ends, strict=True))
        if move.digest == one.digest and move.began <= one.ended and end >= one.taken - WINDOW
    ]


if __name__ == "__main__":
    main()
