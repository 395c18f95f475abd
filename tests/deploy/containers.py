"""Services of a compose file as processes that see what their containers would, where the machine allows that.

No container runtime is needed, but root: each service has a file system of its own (this machine's, overlaid with
what the image adds, and read-only if the file says so), processes of its own, and a network of its own on one bridge,
where it has its service's name. It runs as the user that the file names, without any right, and with the environment of
image and file alone.
"""

import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.deploy.manifests import CHECKOUT, DEPLOY

DOCKERFILE = DEPLOY / "images" / "Dockerfile"
COPIED = {  # where the Dockerfile puts what
    "/etc/ptp/seaweedfs.json": DEPLOY / "s3" / "seaweedfs.json",
    "/etc/ptp/mlflow-auth.ini": DEPLOY / "images" / "mlflow-auth.ini",
    **{f"/usr/local/bin/{name}": DEPLOY / "images" / name for name in ("entrypoint", "s3", "healthy")},
}
USERS = "postgres:x:999:999::/var/lib/postgresql:/bin/sh\nptp:x:10001:10001::/var/lib/ptp:/usr/sbin/nologin\n"
HERE = {"PYTHONPATH": "/opt/checkout", "OMP_NUM_THREADS": "1"}  # the tests' code, not an installed one
_networks = itertools.count()


def are_possible() -> bool:
    """Whether this machine lets us make namespaces, overlays and bridges that carry packets: Docker lets those of other
    bridges pass no more.
    """
    filtered = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if filtered.exists() and filtered.read_text().strip() == "1":
        return False
    tools = all(shutil.which(name) for name in ("unshare", "nsenter", "setpriv", "ip", "chroot"))
    if not tools or os.geteuid() != 0:
        return False
    made = subprocess.run(["ip", "link", "add", "ptp-try", "type", "bridge"], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", "ptp-try"], capture_output=True, check=False)
    return made.returncode == 0


class Service(NamedTuple):
    """A running service: its root folder as it sees it, its address, and where its output goes."""

    name: str
    address: str
    log: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it as `docker stop` does."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once: with its first process, all in its namespace end."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Network:
    """A bridge on which services run, each under its name; `10.89.N.1` is the test's own address there."""

    def __init__(self, folder: Path, secrets: Path) -> None:
        self.folder, self.secrets = folder, secrets
        self._number = (os.getpid() * 7 + next(_networks)) % 200 + 20
        self._bridge = f"ptp{self._number}"
        self._hosts: dict[str, str] = {}
        self._running: list[Service] = []
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "addr", "add", f"10.89.{self._number}.1/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")

    def reserve(self, *names: str) -> None:
        """Give services their addresses, before any of them runs and reads the others'."""
        for name in names:
            self._hosts[name] = f"10.89.{self._number}.{len(self._hosts) + 2}"

    def address(self, name: str) -> str:
        """Return the address of a service."""
        return self._hosts[name]

    def start(self, name: str, service: dict[str, Any], volumes: dict[str, Path]) -> Service:
        """Run a service of the compose file, by its image's entry point; `volumes` are folders by volume."""
        if name not in self._hosts:
            self.reserve(name)
        place = self.folder / name
        root = place / "root"
        for part in ("upper", "work", "root"):
            (place / part).mkdir(parents=True)
        self._connect(name)
        user, _, group = service["user"].partition(":")
        script = [
            "set -e",
            "mount --make-rprivate /",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {root}",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs -o mode=1777 tmpfs {root}/dev/shm",
            f"mount -t proc proc {root}/proc",
            f"mount -t tmpfs -o mode=0755 tmpfs {root}/opt",
            *_bind(Path(sys.prefix), root, "/opt/ptp"),
            *_bind(CHECKOUT, root, "/opt/checkout"),
            *_open_way_to(Path(sys.base_prefix), root),
            *itertools.chain.from_iterable(_bind_script(name, place, root) for name in ("mlflow", "prefect", "ptp")),
            *[f"install -D -m 0755 {source} {root}{target}" for target, source in COPIED.items()],
            f"printf '%s' {shlex.quote(self._hosts_file())} > {root}/etc/hosts",
            f"printf '%s' {shlex.quote(USERS)} >> {root}/etc/passwd",
            f"mkdir -p {root}/run/secrets {root}/project",
            *[f"cp {self.secrets}/{secret} {root}/run/secrets/" for secret in service.get("secrets", [])],
            *itertools.chain.from_iterable(_mount_tmpfs(one, root) for one in service.get("tmpfs", [])),
            *itertools.chain.from_iterable(_bind_volume(one, root, volumes) for one in service.get("volumes", [])),
            f"cd {root}",
            *(["mount -o remount,bind,ro ."] if service.get("read_only") else []),
        ]
        environment = {**image_environment(), **HERE, **service.get("environment", {})}
        command = ["env", "-i", *(f"{key}={value}" for key, value in environment.items())]
        command += ["sh", "-c", 'cd /project && exec "$@"', "sh", "/usr/local/bin/entrypoint", *service["command"]]
        without_rights = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        without_rights += ["--bounding-set=-all", "--inh-caps=-all"]
        script.append(shlex.join(["exec", "chroot", str(root), "setpriv", *without_rights, *command]))
        log = self.folder / f"{name}.log"
        isolated = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "sh", "-c", "\n".join(script)]
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self._space(name)}", *isolated],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        running = Service(name, self._hosts[name], log, process)
        self._running.append(running)
        return running

    def close(self) -> None:
        """End all services and take the network away."""
        for service in self._running:
            if service.process.poll() is None:
                service.kill()
        for name in self._hosts:
            subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True, check=False)
        _run("ip", "link", "del", self._bridge)

    def _connect(self, name: str) -> None:
        space, number = self._space(name), self._hosts[name].rpartition(".")[2]
        outer = f"v{self._number}-{number}"
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", outer, "master", self._bridge, "up")
        _run("ip", "-n", space, "addr", "add", f"{self._hosts[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", space, "link", "set", device, "up")

    def _space(self, name: str) -> str:
        return f"ptp{self._number}-{name}"

    def _hosts_file(self) -> str:
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self._hosts.items())]
        return "\n".join(lines) + "\n"


@contextmanager
def network(folder: Path, secrets: Path) -> Iterator[Network]:
    """A network of services until the block ends."""
    made = Network(folder, secrets)
    try:
        yield made
    finally:
        made.close()


def image_environment() -> dict[str, str]:
    """What the Dockerfile's last stage puts into the environment."""
    last = DOCKERFILE.read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    found: dict[str, str] = {}
    for line in re.findall(r"^ENV (.*)$", last, re.MULTILINE):
        found |= dict(pair.split("=", 1) for pair in shlex.split(line))
    return found


def wait_for(check: list[str], service: Service, seconds: float = 600) -> None:
    """Wait until a command succeeds; raise RuntimeError, with the end of the log, if the service ends first."""
    deadline = time.monotonic() + seconds
    while subprocess.run(check, capture_output=True, check=False).returncode:
        if service.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{service.name} did not come up: {service.log.read_text()[-3000:]}")
        time.sleep(0.2)


def _bind(source: Path, root: Path, target: str) -> list[str]:
    make = f"mkdir -p {root}{target}"
    if source.is_file():
        make = f"install -D -m 0644 /dev/null {root}{target}"
    return [make, f"mount --bind {source.resolve()} {root}{target}"]


def _bind_script(name: str, place: Path, root: Path) -> list[str]:
    """Let a program of the environment name the image's Python: the place of this machine's may be hidden there."""
    return [
        f"sed '1s|.*|#!/opt/ptp/bin/python|' {Path(sys.prefix) / 'bin' / name} > {place}/{name}",
        f"chmod 0755 {place}/{name}",
        f"mount --bind {place}/{name} {root}/opt/ptp/bin/{name}",
    ]


def _bind_volume(volume: str, root: Path, volumes: dict[str, Path]) -> list[str]:
    name, target, *mode = volume.split(":") if ":" in volume else (volume, volume)  # or without a name
    lines = _bind(volumes[name], root, target)
    return [*lines, f"mount -o remount,bind,ro {root}{target}"] if mode == ["ro"] else lines


def _mount_tmpfs(entry: str, root: Path) -> list[str]:
    target, _, options = entry.partition(":")
    place = f"{root}$(chroot {root} readlink -m {target})"  # /var/run is a link, which must not lead out of the root
    return [f"mkdir -p {place}", f"mount -t tmpfs -o {options or 'mode=1777'} tmpfs {place}"]


def _open_way_to(place: Path, root: Path) -> list[str]:
    """Let every user enter the folders above this machine's Python, in the overlay alone."""
    return [f"chmod o+x {root}{folder}" for folder in reversed(place.resolve().parents) if folder != Path("/")]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
