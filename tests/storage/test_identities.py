"""The roles' policies, tried on a real server: each may do what its work needs, and nothing
beside.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from benchmarks.fixtures.prompts import a_task, an_artifact, published
from benchmarks.fixtures.s3_server import S3Server, running_s3
from flows.server import buckets
from ptpipeline.errors import SettingsError
from ptpipeline.records.serving import Holding
from ptpipeline.serving.pointers import Pointers
from ptpipeline.serving.resolver import resolve
from ptpipeline.serving.seen import Memory
from ptpipeline.serving.servers import read_server_reports, report_holdings
from ptpipeline.storage import RequestLimits, S3Store
from ptpipeline.storage.conditional import check_conditional_puts
from ptpipeline.storage.keys import version_key
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote, rollback
from tests.registry.signed import ADA, WORKER, signed
from tests.serving.registered import Clock

CHECKOUT = Path(__file__).parents[2]
DEPLOY, POLICIES = CHECKOUT / "deploy" / "s3", CHECKOUT / "flows" / "server" / "policies"
ROLES = ("trainer", "promoter", "server", "nightly")
ALL_ROLES = (*ROLES, "mlflow")  # the last has a bucket of its own
BUCKET, PREFIX = "factory", "some/prefix"
CAUSE = Cause(actor="ada", reason="better")

PROMPT, ALIAS, HISTORY = (
    "prompts/mood/d1/manifest.json",
    "prompts/mood/aliases/production.json",
    "prompts/mood/history/production/1.json",
)
MANIFEST_ALIAS = "prompts/mood/aliases/manifest.json"  # named to look like a prompt's file
RECORD, PLOT, SIGNATURE = (
    "prompts/mood/d1/records/r.json",
    "prompts/mood/d1/plots/p.png",
    "prompts/mood/d1/signature-k.json",
)
TENSORS, MISTAKES, PAGE = (
    f"prompts/mood/d1/{name}" for name in ("prompt.safetensors", "mistakes-a.json", "report-a.html")
)
VERSION, QUARANTINE = "prompts/mood/versions/1.json", "prompts/mood/quarantine/production-1.json"
SNAPSHOT, REPORT, CHECKPOINT = (
    "snapshots/mood/d1/train.parquet",
    "reports/mood/k/rows.parquet",
    "checkpoints/k.safetensors",
)
SIGNED, SIGNED_SNAPSHOT, SIGNED_RELEASE = (
    f"signatures/{RECORD}/s/k.json",
    "signatures/snapshots/mood/d1/manifest.json/s/k.json",
    "signatures/releases/spring.json/s/k.json",
)
SIGNED_VERSION, SIGNED_ALIAS, SIGNED_HISTORY = (f"signatures/{key}/s/k.json" for key in (VERSION, ALIAS, HISTORY))
RELEASE, SERVER, PROBE = "releases/spring.json", "servers/one.json", "probe/n/one"
ALL = {
    PROMPT,
    ALIAS,
    MANIFEST_ALIAS,
    HISTORY,
    RECORD,
    PLOT,
    SIGNATURE,
    TENSORS,
    MISTAKES,
    PAGE,
    VERSION,
    QUARANTINE,
    SNAPSHOT,
    REPORT,
    CHECKPOINT,
    RELEASE,
    SERVER,
    PROBE,
    SIGNED,
    SIGNED_SNAPSHOT,
    SIGNED_RELEASE,
    SIGNED_VERSION,
    SIGNED_ALIAS,
    SIGNED_HISTORY,
    "other/thing",
}
SIGNATURES = {key for key in ALL if key.startswith("signatures/")}
SIGNED_PROMOTED = {SIGNED_ALIAS, SIGNED_HISTORY}
PROMPTS = {key for key in ALL if key.startswith("prompts/")}
PROMOTED = {ALIAS, MANIFEST_ALIAS, HISTORY, QUARANTINE}
MAY: dict[str, dict[str, set[str]]] = {
    "trainer": {
        "read": PROMPTS | SIGNATURES | {SNAPSHOT, REPORT, CHECKPOINT, PROBE},
        "write": (PROMPTS - PROMOTED)
        | {SIGNED, SIGNED_SNAPSHOT, SIGNED_VERSION}
        | {SNAPSHOT, REPORT, CHECKPOINT, PROBE},
        "delete": {CHECKPOINT, PROBE},
    },
    "promoter": {
        "read": ALL,
        "write": PROMOTED | SIGNED_PROMOTED | {SIGNED_VERSION, SIGNED_RELEASE, VERSION, RELEASE, PROBE},
        "delete": ALL - {RELEASE, "other/thing"},
    },
    "server": {
        "read": {PROMPT, TENSORS, SIGNATURE, ALIAS, MANIFEST_ALIAS, VERSION, SIGNED_ALIAS, SIGNED_VERSION, SERVER},
        "write": {SERVER},
        "delete": set(),
    },
}
MAY["nightly"] = {doing: MAY["trainer"][doing] | MAY["promoter"][doing] for doing in ("read", "write", "delete")}


def policy(role: str) -> Any:
    return json.loads((POLICIES / f"{role}.json").read_text())


def test_both_kinds_of_server_get_the_same_policies() -> None:
    seaweedfs = json.loads((DEPLOY / "seaweedfs.json").read_text())
    assert {item["name"]: item["document"] for item in seaweedfs["policies"]} == {
        role: policy(role) for role in ALL_ROLES
    }
    assert {path.stem for path in POLICIES.glob("*.json")} == set(buckets.ROLES) == set(ALL_ROLES)
    assert {item["name"]: item.get("policyNames") for item in seaweedfs["identities"]} == {
        "admin": None,
        **{role: [role] for role in ALL_ROLES},
    }


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS with the identities of deploy/s3/seaweedfs.json."""
    folder = tmp_path_factory.mktemp("guarded")
    values = {
        f"{name.upper()}_{kind}_KEY": f"{name}-{kind.lower()}" for name in ALL_ROLES for kind in ("ACCESS", "SECRET")
    }
    values |= {
        "ADMIN_ACCESS_KEY": "test",
        "ADMIN_SECRET_KEY": "test-secret",
        "BUCKET": BUCKET,
        "OBJECTS": f"{BUCKET}/{PREFIX}",
    }
    (folder / "identities.json").write_text(Template((DEPLOY / "seaweedfs.json").read_text()).substitute(values))
    with running_s3(folder / "data", folder / "identities.json") as server:
        connect("test", "test-secret", server).create_bucket(Bucket=BUCKET)
        connect("test", "test-secret", server).create_bucket(Bucket=f"{BUCKET}-mlflow")
        yield server


def connect(access: str, secret: str, server: S3Server) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
    )


@pytest.fixture(scope="module")
def stores(guarded: S3Server) -> dict[str, S3Store]:
    """The store as each role reaches it, by its own keys."""
    opened = {}
    for role in (*ROLES, "admin"):
        access, secret = (
            (guarded.access_key, guarded.secret_key) if role == "admin" else (f"{role}-access", f"{role}-secret")
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", access)
            patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
            patch.delenv("AWS_SESSION_TOKEN", raising=False)
            opened[role] = S3Store(BUCKET, PREFIX, guarded.endpoint, RequestLimits(10, 2))
            assert not opened[role].exists("prompts/none/manifest.json")  # the keys are read with the first request
    return opened


@pytest.mark.servers
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_its_work_needs_and_nothing_beside(role: str, stores: dict[str, S3Store]) -> None:
    admin, store = stores["admin"], stores[role]
    calls: dict[str, Callable[[str], object]] = {
        "read": store.read,
        "write": lambda key: store.replace(key, uuid.uuid4().bytes, admin.read(key).etag),
        "delete": store.delete,
    }
    for key in ALL:
        admin.create(key, b"here")
        for doing, call in calls.items():
            assert allowed(lambda: call(key)) == (key in MAY[role][doing]), f"{role} {doing} {key}"
    for key in ALL:
        admin.delete(key)


@pytest.mark.servers
@pytest.mark.parametrize(("role", "key"), [("trainer", ALIAS), ("server", ALIAS), ("promoter", SNAPSHOT)])
def test_a_refusal_says_who_may_not_do_what(role: str, key: str, stores: dict[str, S3Store]) -> None:
    with pytest.raises(
        SettingsError,
        match=rf"this identity may not write some/prefix/{key} \(AccessDenied\); give it the policy of its role "
        r"\(deploy/s3/\)",
    ) as raised:
        stores[role].create(key, b"mine")
    assert f"{role}-secret" not in str(raised.value)


@pytest.mark.servers
@pytest.mark.parametrize("role", ROLES)
def test_what_is_not_there_is_told_from_what_is_refused(role: str, stores: dict[str, S3Store]) -> None:
    assert not stores[role].exists("prompts/none/aliases/production.json")
    assert list(stores[role].keys("prompts/none")) == []


@pytest.mark.servers
@pytest.mark.parametrize("role", ["trainer", "promoter", "nightly"])
def test_who_writes_may_probe(role: str, stores: dict[str, S3Store]) -> None:
    check_conditional_puts(stores[role])
    assert list(stores[role].keys("probe")) == []


@pytest.mark.servers
def test_mlflow_keeps_its_artifacts_and_reaches_nothing_else(guarded: S3Server, stores: dict[str, S3Store]) -> None:
    stores["admin"].create(SNAPSHOT, b"rows")
    mlflow, artifacts = connect("mlflow-access", "mlflow-secret", guarded), f"{BUCKET}-mlflow"
    mlflow.put_object(Bucket=artifacts, Key="0/run/page.html", Body=b"page")
    assert mlflow.list_objects_v2(Bucket=artifacts)["KeyCount"] == 1
    mlflow.delete_object(Bucket=artifacts, Key="0/run/page.html")
    for call in (mlflow.get_object, mlflow.delete_object):
        with pytest.raises(ClientError, match="AccessDenied"):
            call(Bucket=BUCKET, Key=f"{PREFIX}/{SNAPSHOT}")
    stores["admin"].delete(SNAPSHOT)


@pytest.mark.servers
def test_a_prompt_goes_from_role_to_role_into_production(stores: dict[str, S3Store], tmp_path: Path) -> None:
    ledger, task = Ledger(f"sqlite:///{tmp_path}/ledger.db"), a_task()
    trainer, promoter = (Registry(ledger, stores[role]) for role in ("trainer", "promoter"))
    first = published(trainer, task, seed=0)
    promote(trainer, task, first, CAUSE)  # a shared ledger lets the trainer say so; the store does not follow
    assert not stores["admin"].exists(ALIAS)
    promote(promoter, task, first, CAUSE)  # a repeat brings the store up
    assert resolve(stores["server"], "mood").number == first
    second = published(trainer, task, seed=1, champion=an_artifact(task, 0).digest)
    promote(promoter, task, second, CAUSE)
    assert resolve(stores["server"], "mood@production").number == second
    assert resolve(stores["server"], f"mood@{first}").number == first
    looks = Pointers(stores["server"], (), Clock())
    assert looks.discover()
    assert looks.look(held := looks.look({})) == {}
    rollback(promoter, task.name, CAUSE)
    assert looks.look(held) != held
    assert resolve(stores["server"], "mood").number == first
    assert stores["admin"].exists(version_key("mood", second))
    ledger.close()


@pytest.mark.servers
def test_a_server_reads_signed_prompts_and_reports_what_it_holds(stores: dict[str, S3Store], tmp_path: Path) -> None:
    """All that a reader with trusted keys and a memory asks for lies within the server's policy."""
    ledger, task = Ledger(f"sqlite:///{tmp_path}/ledger.db"), a_task("signed-mood")
    trainer = signed(Registry(ledger, stores["trainer"]), WORKER, WORKER, ADA)
    promoter = signed(Registry(ledger, stores["promoter"]), ADA, WORKER, ADA)
    reader = signed(Registry(ledger, stores["server"]), None, WORKER, ADA).store
    memory = Memory(tmp_path / "seen")
    for seed in (0, 1):
        champion = an_artifact(task, 0).digest if seed else None
        number = published(trainer, task, seed, champion)
        promote(promoter, task, number, CAUSE)
        resolved = resolve(reader, task.name, memory)
        assert resolved.number == number
        for _ in range(2):  # the second replaces the first
            report_holdings(stores["server"], "host-1", [Holding(task.name, resolved.artifact.digest)])
        assert [report.server for report in read_server_reports(stores["server"])] == ["host-1"]
    assert resolve(reader, f"{task.name}@1").number == 1
    ledger.close()


def allowed(call: Callable[[], object]) -> bool:
    """Whether the store let it happen; a refusal has to be one of rights."""
    try:
        call()
    except SettingsError as error:
        if "this identity may not" in str(error):
            return False
        raise
    return True
