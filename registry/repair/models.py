"""Compares the versions and aliases in MLflow with the ledger's."""

from collections.abc import Iterator

from ptpipeline.records.base import is_name
from ptpipeline.records.versions import Promotion
from registry.card.card import VERDICT_TAG
from registry.mlflow.store import Model
from registry.registry import Registry
from registry.repair.difference import REBUILD, RECONCILE, Difference, describe_head
from registry.versions.history import list_rows
from registry.versions.mlflow_alias import find_outdated
from registry.versions.promotion import RESERVED


def compare_model(registry: Registry, task: str, versions: dict[int, str], model: Model) -> Iterator[Difference]:
    """Yield versions (number -> digest) that MLflow's model of the task does not show, then aliases that differ."""
    shown = {version.digest for version in model.versions.values()}
    for number, digest in versions.items():
        if digest not in shown:
            yield Difference(
                task=task,
                kind="model",
                what=f"MLflow version of version {number}",
                expected=f"tag ptp.digest {digest[:12]}",
                found="none",
                mend=RECONCILE,
                safe=True,
            )
    heads = {head.alias: head for head in registry.ledger.heads(task)}
    rows = list_rows(registry.ledger, task, list(heads.values()))
    known = {one.digest: one for one in registry.ledger.versions(task, limit=None) if one.number in versions}
    for entry in find_outdated(rows, model, known):
        yield Difference(
            task=task,
            kind="model",
            what=f"MLflow's page of version {entry.version}",
            expected="the newest verdict, and since when, by whom and why aliases name it",
            found=", ".join([f"verdict {entry.verdict.get(VERDICT_TAG)}", *entry.aliases]),
            mend=RECONCILE,
            safe=True,
        )
    for alias in sorted({*heads, *model.aliases}):
        head = heads.get(alias)
        if head is None:
            yield _unknown_alias(task, alias, versions, model)
        elif _digest(model, alias) != head.digest:
            yield _moved_alias(registry, head, model)


def _moved_alias(registry: Registry, head: Promotion, model: Model) -> Difference:
    edited = head.alias in model.aliases and _has_shown(registry, head, model)
    return Difference(
        task=head.task,
        kind="edit" if edited else "alias",
        what=f"MLflow alias {head.alias}",
        expected=describe_head(head),
        found=_describe(model, head.alias),
        mend=RECONCILE,
        safe=not edited,
    )


def _has_shown(registry: Registry, head: Promotion, model: Model) -> bool:
    """Whether MLflow showed the head before: then what differs is somebody's edit, which the reconcile judges."""
    applied = registry.ledger.applied("mlflow", head.task, head.alias)
    return applied is not None and applied.seq == model.applied.get(head.alias) == head.seq


def _unknown_alias(task: str, alias: str, versions: dict[int, str], model: Model) -> Difference:
    digest = _digest(model, alias)
    ours = next((number for number, known in versions.items() if known == digest), None)
    mend = (
        f"ptp promote {task}@{ours} --alias {alias} --reason ..."
        if ours and is_name(alias) and not RESERVED.fullmatch(alias)
        else f"delete the alias {alias} of {task} in MLflow; an alias is of lower-case letters, digits and dashes"
        if ours
        else f"if the ledger was lost, {REBUILD}; else delete the alias {alias} of {task} in MLflow"
    )
    return Difference(
        task=task,
        kind="alias",
        what=f"MLflow alias {alias}",
        expected=describe_head(None),
        found=_describe(model, alias),
        mend=mend,
        safe=False,
    )


def _describe(model: Model, alias: str) -> str:
    number = model.aliases.get(alias)
    return f"MLflow version {number} ({_digest(model, alias)[:12] or 'no ptp.digest'})" if number else "no alias"


def _digest(model: Model, alias: str) -> str:
    """The digest of the version that the alias names in MLflow; empty if there is none, or no tag of ours."""
    number = model.aliases.get(alias, "")
    return model.versions[number].digest if number in model.versions else ""
