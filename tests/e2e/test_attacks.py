"""Attacks on a running stack that went through once: by a page in the owner's browser, or by another user."""

import shlex
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from ptpipeline.storage import open_store
from tests.e2e.conftest import Project
from tests.e2e.ports import find_ports

pytestmark = pytest.mark.servers

EVIL = "http://evil.example"


def run_a_script(api: str, script: str, headers: dict[str, str]) -> list[int]:
    """Create a flow, a deployment whose pull step is the script, and a run of it; return what Prefect answered."""
    statuses: list[int] = []

    def post(path: str, body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{api}{path}", json=body, headers=headers, timeout=60)
        statuses.append(answer.status_code)
        return answer.json() if answer.is_success else {}

    flow = post("/flows/", {"name": "innocent"})
    deployment = {
        "name": "innocent",
        "flow_id": flow.get("id"),
        "work_pool_name": "ptp",
        "entrypoint": "innocent.py:innocent",
        "pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": script}}],
    }
    found = post("/deployments/", deployment)
    post(f"/deployments/{found.get('id')}/create_flow_run", {})
    return statuses


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": EVIL}, {"origin": "null"}, {"host": "evil.example", "origin": EVIL}],
    ids=["another user", "a web page", "a page in a frame", "a rebound name"],
)
def test_a_stranger_runs_no_script_through_prefect(project: Project, tmp_path: Path, headers: dict[str, str]) -> None:
    loot = tmp_path / "loot"
    script = shlex.join(["cp", str(project.home / "stack.env"), str(loot)])
    statuses = run_a_script(project.prefect, shlex.join(["bash", "-c", script]), headers)
    deadline = time.monotonic() + 60
    while 201 in statuses and not loot.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not loot.exists(), "the worker ran it, and it read the keys"
    assert set(statuses) <= {401, 403}


def test_a_stranger_replaces_no_object_behind_s3(project: Project) -> None:
    key, kept = "prompts/doors/aliases/production.json", b'{"version": 1}'
    store = open_store("s3://ptp", project.stack.settings["s3_endpoint"])
    store.create(key, kept)
    folder = f"/buckets/ptp/{key.rpartition('/')[0]}/"
    taken = []
    for port in find_ports(project.stack):
        for scheme in ("http", "https"):
            address = f"{scheme}://127.0.0.1:{port.number}"
            for verb, path, sent in (
                ("GET", f"/buckets/ptp/{key}", {}),
                ("POST", folder, {"files": {"file": ("production.json", b'{"version": 666}')}}),
                ("PUT", f"/buckets/ptp/{key}", {"content": b'{"version": 666}'}),
                ("DELETE", f"/buckets/ptp/{key}", {}),
            ):
                try:
                    answer = httpx.request(
                        verb, address + path, headers={"origin": EVIL}, verify=False, timeout=30, **sent
                    )
                except httpx.TransportError:
                    continue
                if answer.is_success:
                    taken.append((port, verb, answer.text[:100]))
    assert taken == []
    assert store.read(key).body == kept
