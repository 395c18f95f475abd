"""The only module of these tests that imports the product: if a module moves, this file follows, and no pin
changes.
"""

import contextlib
import hashlib
import io
import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pyarrow.parquet
import torch
import typer
from alembic.config import Config
from alembic.script import ScriptDirectory
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from flows import requests as flow_requests
from flows.cli import main
from flows.cli.app import app
from flows.server import webhook
from flows.server.deploy import FLOWS, describe_deployment
from flows.server.schedules import slug_of
from flows.stages.context import MACHINE
from flows.stages.outcome import Outcome
from ptpipeline.data import sources
from ptpipeline.data.snapshot import load_split, read_snapshot, take_snapshot
from ptpipeline.data.tokens import EncodedRow, LabelTokens, TaskText
from ptpipeline.evaluation import key as evaluation
from ptpipeline.evaluation.baselines import Setup
from ptpipeline.evaluation.evaluate import evaluate
from ptpipeline.evaluation.mistakes import Mistakes
from ptpipeline.evaluation.probes.every import probes_digest
from ptpipeline.gate import decide as gate
from ptpipeline.gate.spending import Budget, question_digest
from ptpipeline.models.base import prepare_base
from ptpipeline.models.inputs import KeyValues
from ptpipeline.models.load import load_base
from ptpipeline.prompts.artifact import Artifact, read_artifact
from ptpipeline.prompts.interpretation import Neighbours, Wayward
from ptpipeline.prompts.tensors import pack, pack_ensemble
from ptpipeline.records.base import digest_of
from ptpipeline.records.data import Snapshot, SplitInfo
from ptpipeline.records.prompts import BaseModelRef, PromptManifest, TunedPrompt
from ptpipeline.records.reports import Report
from ptpipeline.records.serving import Holding, ServerReport
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PRODUCTION, Pointer, VersionName
from ptpipeline.serving.engine import Engine
from ptpipeline.serving.servers import report_holdings
from ptpipeline.settings import Settings, load_settings
from ptpipeline.signing import OBJECT_DOMAIN, PROMPT_DOMAIN, Signature, SigningKey
from ptpipeline.storage import FolderStore, conditional
from ptpipeline.storage.signed import SignedStore
from ptpipeline.task import folder, task
from ptpipeline.task.recipe import CURRENT, SharedPrompt
from ptpipeline.task.template import parse_template
from ptpipeline.tuning import key as training
from ptpipeline.tuning import loop
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.member import Job
from ptpipeline.tuning.multitask import Sources, compute_shared_key
from ptpipeline.tuning.tune import TaskData, _name_trial
from registry.card.card import Provenance
from registry.ledger import database
from registry.ledger.ledger import Ledger, Release
from registry.ledger.looks import take_look
from registry.ledger.tombstone import lock_name
from registry.lineage.ancestry import sources_in
from registry.mlflow import store as mlflow_store
from registry.mlflow.store import MlflowStore
from registry.mlflow.tracking import Tracking
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.versions import mlflow_edit as door
from registry.versions.commit import Cause
from registry.versions.dossier import Dossier
from registry.versions.projection import lease_name
from registry.versions.promotion import promote, promote_release, rollback
from registry.versions.publish import attach, register, stage
from tests.golden import inputs

# ---------------------------------------------------------------- the command line


def ptp(*arguments: str) -> tuple[int, str]:
    """Exit code and standard output of one `ptp` command, as the console entry point runs it in this process."""
    code, output = 0, io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, output.getvalue()


def verbs() -> dict[str, list[str]]:
    """Each verb with its arguments and options."""
    return dict(_verbs("ptp", typer.main.get_command(app)))


def _verbs(name: str, command: Any) -> Iterator[tuple[str, list[str]]]:
    if hasattr(command, "commands"):
        for word, part in sorted(command.commands.items()):
            yield from _verbs(f"{name} {word}", part)
        return
    names = [
        [parameter.name] if parameter.param_type_name == "argument" else [*parameter.opts, *parameter.secondary_opts]
        for parameter in command.params
    ]
    yield name, [word for words in names for word in words if word != "--help"]


# ---------------------------------------------------------------- names of fields


def records() -> dict[str, Any]:
    """The fields of what is stored, shown as a line of the night's table, or asked of a flow."""
    stored = {
        "snapshot": Snapshot,
        "prompt manifest": PromptManifest,
        "training": TunedPrompt,
        "report": Report,
        "verdict": Verdict,
        "dossier": Dossier,
        "pointer": Pointer,
        "version name": VersionName,
        "server report": ServerReport,
        "release": Release,
        "signature": Signature,
        "neighbours": Neighbours,
        "wayward": Wayward,
        "mistakes": Mistakes,
        "a line of the night's table": Outcome,
    }
    asks = {f"request {name}": getattr(flow_requests, _request_of(name)) for name in FLOWS}
    return {name: fields(model) for name, model in (stored | asks).items()}


def _request_of(flow: str) -> str:
    return "".join(part.capitalize() for part in flow.split("-")) + "Request"


def task_fields() -> dict[str, Any]:
    """All keys of a task file, of base_models.yaml and of shared_prompts.yaml."""
    models = {"task": task.Task, "base model": folder.BaseModelSource, "shared prompt": SharedPrompt}
    return {name: fields(model) for name, model in models.items()}


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """Field -> the values that it may take if these are listed, its own fields if it is a section, else both behind
    each other.
    """
    return {name: _kind(info.annotation) for name, info in model.model_fields.items()}


def _kind(annotation: Any) -> Any:
    sections = [fields(part) for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    choices = [value for part in _parts(annotation) if get_origin(part) is Literal for value in get_args(part)]
    return [*choices, *sections] if choices or sections else "any"


def _parts(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal or not get_args(annotation):
        yield annotation
        return
    for part in get_args(annotation):
        yield from _parts(part)


def settings_names() -> list[str]:
    """Variables of the environment that the product reads as its own."""
    return sorted(
        [
            *(f"{Settings.model_config['env_prefix']}{name}".upper() for name in Settings.model_fields),
            webhook.SECRET,
            webhook.TOKEN,
        ]
    )


def words() -> dict[str, Any]:
    """Words and numbers that are stored and compared with later, so that a change forgets what is stored."""
    full = _task(inputs.FULL)
    return {
        "trial of a search": _name_trial(full, full.tune.variants()[0]),
        "sources in trials": sources_in("moods", ["moods/teacher of mood", "moods/full"]),
        "engine": training.ENGINE_VERSION,
        "scoring": evaluation.SCORING_VERSION,
        "gate": task.GATE_VERSION,
        "ingest": sources.INGEST_VERSION,
        "a check that needs a person": gate.APPROVAL,
        "alias of production": PRODUCTION,
        "alias of a shared prompt": CURRENT,
        "domain of signatures": PROMPT_DOMAIN,
        "domain of signatures of objects": OBJECT_DOMAIN,
        "actor of the night": MACHINE,
        "actor of Prefect": flow_requests.PREFECT_ACTOR,
        "actor of MLflow": [door.CAUSE.actor, door.CAUSE.reason],
        "lease of an alias": lease_name("mood", "production"),
        "lock of a digest": lock_name("mood", "a" * 64),
        "webhook in MLflow": [mlflow_store.WEBHOOK, *mlflow_store.EVENTS],
    }


# ---------------------------------------------------------------- digests and artifacts


def digests() -> dict[str, str]:
    """Every identity that is computed from records alone."""
    tasks, snapshot, report = (
        {name: _task(declared) for name, declared in inputs.TASKS.items()},
        Snapshot.model_validate(inputs.SNAPSHOT),
        Report.model_validate(inputs.REPORT | {"digest": "a" * 64}),
    )
    plain, full = tasks["plain"], tasks["full"]
    shared = Sources(
        "moods", SharedPrompt.model_validate(inputs.SHARED), [TaskData(plain, snapshot), TaskData(full, snapshot)]
    )
    rows, sliced = (
        SplitInfo(rows=2, labels={}, digest="1" * 64),
        SplitInfo(rows=2, labels={}, digest="1" * 64, slices="2" * 64),
    )
    found = {
        "canonical JSON": digest_of({"ü": [1.0, 1e-7, None, True]}),
        "training key": training.compute_training_key(plain, snapshot, "f" * 64),
        "training key from a start": training.compute_training_key(plain, snapshot, "f" * 64, "4" * 64),
        "shared key": compute_shared_key(shared, "f" * 64),
        "rows": evaluation.rows_identity(rows),
        "rows with slices": evaluation.rows_identity(sliced),
        "evaluation key": evaluation.evaluation_key("a" * 64, "1" * 64, "torch.float32"),
        "evaluation key with a hard prompt": evaluation.evaluation_key(
            "a" * 64, "1" * 64, "bfloat16", full.hard_prompt
        ),
        "gate key": gate.gate_key(plain, report, None),
        "gate key against a champion": gate.gate_key(plain, report, "b" * 64),
        "question of a look": question_digest("a" * 64, None, "1" * 64, plain.policy_digest()),
        "verdict": _verdict("a" * 64, plain).verdict_digest(),
    }
    for name, declared in tasks.items():
        found |= {
            f"recipe of {name}": declared.recipe_digest(),
            f"policy of {name}": declared.policy_digest(),
            f"probes of {name}": probes_digest(declared.gate.checks),
        }
        found |= {
            f"recipe of variant {place} of {name}": declared.model_copy(update={"tune": tune}).recipe_digest()
            for place, tune in enumerate(declared.tune.variants())
        }
    return found


def artifacts() -> dict[str, Artifact]:
    """One artifact a method, of tensors that were set by hand."""
    found = {}
    for method, (dtype, own) in inputs.METHODS.items():
        numbers = torch.tensor(inputs.NUMBERS)
        prompt = KeyValues(numbers.reshape(2, 1, 3, 2), -numbers.reshape(2, 1, 3, 2)) if method == "prefix" else numbers
        found[method] = pack(prompt, dtype, inputs.MANIFEST | {"method": method} | own)
    found["prompt of another seed"] = pack(
        torch.tensor(inputs.NUMBERS) * 2, "float16", inputs.MANIFEST | {"method": "prompt", "seed": 1}
    )
    members = [found["prompt"], found["prompt of another seed"]]
    return found | {"ensemble": pack_ensemble(members, "vote", inputs.MANIFEST | {"method": "ensemble"})}


def described(artifact: Artifact) -> dict[str, Any]:
    """What an artifact is known by: its digest, its bytes, and its manifest as it is stored."""
    return {
        "digest": artifact.digest,
        "bytes": hashlib.sha256(artifact.tensors).hexdigest(),
        "manifest": artifact.manifest.to_json(),
    }


def snapshot(folder: Path) -> dict[str, Any]:
    """A snapshot of a small csv in the present folder: its manifest, the ids of its rows by split, and the keys of the
    store.
    """
    Path("rows.csv").write_text(inputs.ROWS, encoding="utf-8")
    store = FolderStore(folder / "store")
    made = take_snapshot(_task(inputs.SLICED), store, folder / "home")
    return {
        "manifest": made.to_json(),
        "rows": {split: [row.id for row in load_split(store, made, split)] for split in made.splits()},
        "keys": sorted(objects(store)),
    }


def _task(declared: dict[str, Any]) -> task.Task:
    return task.Task.model_validate(declared)


def _verdict(digest: str, declared: task.Task) -> Verdict:
    return Verdict.model_validate(inputs.VERDICT | {"digest": digest, "policy": declared.policy_digest()})


# ---------------------------------------------------------------- the store and the ledger


def registered(folder: Path, mlflow: str | None = None) -> Registry:
    """A registry in that folder in which everything happened once: publishing, promoting, a release, an experiment,
    damage that was mended.
    """
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(inputs.SIGNING_KEY))
    store = SignedStore(FolderStore(folder / "store"), key=key)
    registry = Registry(Ledger(f"sqlite:///{folder / 'ledger.db'}"), store, MlflowStore(mlflow) if mlflow else None)
    declared, cause, made = _task(inputs.PLAIN), Cause(*inputs.CAUSE), artifacts()
    registry.ledger.save_snapshot(Snapshot.model_validate(inputs.SNAPSHOT))
    _publish(registry, made["prompt"])
    promote(registry, declared, 1, cause)
    attach(registry, made["prompt"].digest, Wayward.model_validate(inputs.WAYWARD))
    store.create("prompts/mood/versions/2.json", b"{}")
    _publish(registry, made["ensemble"], made["prompt of another seed"])
    store.replace(
        "prompts/mood/aliases/production.json", b"{}", store.read("prompts/mood/aliases/production.json").etag
    )
    override = Cause(*inputs.CAUSE, override=True)
    promote(registry, declared, 2, override)
    promote(registry, declared, 2, cause, "staging")
    rollback(registry, "mood", cause)
    promote_release(
        registry,
        {"mood": declared},
        Release(name="spring", actor="ada", reason="better", versions={"mood": 2}, at="2026-01-01"),
        override,
    )
    store.create("prompts/mood/aliases/strange.json", b"{}")
    fix(registry, {"mood": declared}, examine(registry))
    report_holdings(store, inputs.HOLDER, [Holding("mood", made["prompt"].digest)])
    store.create(Checkpoints(store, 60.0, b"s" * 32).open(_base(), [_job()], "shared").key, b"state")
    take_look(registry.ledger, "mood", "9" * 64, ["0123456789abcdef", "fedcba9876543210-2"], Budget(0.05))
    return registry


def _publish(registry: Registry, artifact: Artifact, *members: Artifact) -> None:
    stage(registry.ledger, registry.store, artifact, members)
    own, key, declared = {"digest": artifact.digest}, {"evaluation_key": artifact.digest[::-1]}, _task(inputs.PLAIN)
    tuned, report = TunedPrompt.model_validate(inputs.TUNED | own), Report.model_validate(inputs.REPORT | own | key)
    found = Neighbours.model_validate(inputs.NEIGHBOURS), Mistakes.model_validate(inputs.MISTAKES)
    verdict = _verdict(artifact.digest, declared).model_copy(update=key)
    register(registry, Provenance(tuned, report, verdict, {"learning_curve": inputs.PNG}, "c0ffee", *found))


def objects(store: Any) -> dict[str, bytes]:
    """Key -> bytes of all that lies in a store over a folder."""
    root = Path(store.url.removeprefix("file://"))
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return {path.as_posix(): (root / path).read_bytes() for path in files if not path.parts[0].startswith(".")}


def probe_keys(folder: Path) -> list[str]:
    """The keys that a probe of a store writes and removes."""
    written: list[str] = []

    class Noting(FolderStore):
        def create(self, key: str, body: bytes) -> None:
            written.append(key)
            super().create(key, body)

    conditional.check_conditional_puts(Noting(folder))
    return sorted(set(written))


def _base() -> Any:
    return SimpleNamespace(ref=BaseModelRef.model_validate(inputs.BASE), dtype=torch.float32)


def _job() -> Job:
    declared, labels = _task(inputs.PLAIN), LabelTokens(("bad", "good"), ((5,), (6, 7)))
    rows = [EncodedRow("1", [3, 4], (5,), "bad"), EncodedRow("2", [4], (6, 7), "good")]
    return Job(
        "mood",
        declared,
        declared.tune,
        torch.tensor(inputs.NUMBERS),
        TaskText("mood", parse_template("{text}"), labels, 100, lambda text, special: []),
        rows,
        rows[:1],
    )


def ledger_schema(folder: Path) -> dict[str, Any]:
    """SQL of every table, index and trigger of a new ledger as SQLite states it, and the migrations in order."""
    Ledger(f"sqlite:///{folder / 'ledger.db'}").close()
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    with sqlite3.connect(folder / "ledger.db") as connection:
        statements = dict(
            connection.execute("SELECT type || ' ' || name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY 1")
        )
    return {
        "revisions": [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1],
        "sqlite": statements,
    }


def measured(name: str, number: int) -> tuple[Report, list[str]]:
    """A version of the project in the present folder, measured anew on its test rows; and the columns of the results
    per row.
    """
    settings = load_settings()
    store, declared = FolderStore(settings.home / "store"), folder.find_task(settings.tasks, name)
    artifact = read_artifact(store, name, Ledger(settings.ledger).version(name, number).digest)
    for kept in (settings.home / "store" / "reports").rglob("*.parquet"):
        kept.unlink()
    engine = Engine(load_base(prepare_base(declared.base_model, settings), "float32"))
    setup = Setup("test", declared.data.slices, declared.hard_prompt)
    report = evaluate(engine, artifact, read_snapshot(store, name, artifact.manifest.snapshot), store, setup)
    return report, pyarrow.parquet.read_schema(io.BytesIO(store.read(report.rows_key).body)).names


def restore_times(project: Path) -> None:
    """Date the project's dossiers as its store did, which no checkout keeps: each when its verdict was given."""
    known = Ledger(f"sqlite:///{project / 'home/ledger.db'}")
    for path in (project / "home/store").rglob("records/*.json"):
        verdict = Dossier.model_validate_json(path.read_bytes()).verdict
        if verdict:
            at = known.verdict_times(verdict.task, verdict.digest)[verdict.verdict_digest()]
            os.utime(path, (time := datetime.fromisoformat(at).timestamp(), time))
    known.close()


# ---------------------------------------------------------------- Prefect and MLflow


def deployments() -> list[dict[str, Any]]:
    """The deployments for the fixed tasks, in the form of Prefect's prefect.yaml."""
    tasks = [_task(declared) for declared in inputs.TASKS.values()]
    return [_as_in_yaml(describe_deployment(flow, tasks, [], "{{ $PWD }}")) for flow in FLOWS]


def _as_in_yaml(deployment: dict[str, Any]) -> dict[str, Any]:
    pool = {"name": deployment["work_pool_name"], "job_variables": deployment["job_variables"]}
    if deployment["work_queue_name"] != "default":
        pool["work_queue_name"] = deployment["work_queue_name"]
    written = {
        "name": deployment["name"],
        "entrypoint": deployment["entrypoint"],
        "pull": deployment["pull_steps"],
        "work_pool": pool,
    }
    if deployment["concurrency_limit"]:
        written["concurrency_limit"] = {"limit": deployment["concurrency_limit"], **deployment["concurrency_options"]}
    if deployment["schedules"] or deployment["concurrency_limit"]:
        written["schedules"] = [
            {"slug": one["slug"], **one["schedule"]} | ({"parameters": one["parameters"]} if one["parameters"] else {})
            for one in deployment["schedules"]
        ]
    return written


def slugs(schedules: list[tuple[str, str]]) -> list[str]:
    """The slug of each schedule."""
    return [slug_of(task.Schedule(cron=cron, timezone=zone)) for cron, zone in schedules]


def follow_a_training(mlflow: str) -> None:
    """What a training of the fixed job tells MLflow while it runs."""
    job = _job()
    tracking, point = Tracking(mlflow), TunedPrompt.model_validate(inputs.TUNED | {"digest": "a" * 64}).curve[0]
    run = tracking.start("mood/trial", loop._list_parameters(_base(), SimpleNamespace(job=job)), {"ptp.task": "mood"})  # type: ignore[arg-type]
    tracking.log_point(run, point)
    tracking.finish(run, "FINISHED")


def refuse_an_alias(registry: Registry) -> None:
    """What is left on a version from which an alias was taken."""
    if registry.mlflow is not None:
        registry.mlflow.refuse("mood", "1", "not yours")
