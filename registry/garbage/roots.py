"""The roots of garbage collection: what is in use by the ledger, by servers, by the store's pointers and by MLflow."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import groupby

from pydantic import Field

from ptpipeline.records import base
from ptpipeline.records.base import Record
from ptpipeline.records.versions import VersionRef
from ptpipeline.serving.servers import read_server_reports
from ptpipeline.storage import ObjectStore
from registry.ledger.usage import Name, PromptUses, Use
from registry.listing import read_all
from registry.registry import Registry
from registry.versions.projection import pointer_in

ABANDONED = timedelta(days=1)  # after which a publish that nobody began again is given up


class Retention(Record):
    """What is kept besides what is in use: each task's newest `candidates` versions, and what is younger than
    `grace`.
    """

    candidates: int = Field(default=10, ge=1)
    grace: timedelta = Field(default=timedelta(hours=24), ge=timedelta(0))

    def is_fresh(self, at: datetime) -> bool:
        """Return whether that time lies within the grace period."""
        return base.read_clock() - at < self.grace


def prompts_in_use(uses: PromptUses, policy: Retention) -> set[Name]:
    """Return the prompts that the ledger needs: ever promoted or released, being published, published within the grace
    period, or among the newest.

    Every run publishes its candidate again, so what today's recipe and rows lead to was published lately.
    """
    since = abandoned_before(policy)
    named = {use.name for use in uses.intents if use.at >= since} | uses.promoted
    for release in uses.releases:
        numbers = {VersionRef(task, number) for task, number in release.items()}
        named |= {uses.versions[number] for number in numbers & uses.versions.keys()}
    for _, numbered in groupby(sorted(uses.versions), key=lambda version: version.task):
        named |= {uses.versions[version] for version in list(numbered)[-policy.candidates :]}
    return named | _find_recent(policy, uses.published)


def abandoned_before(policy: Retention) -> str:
    """Return the time before which a publish began that is given up: a day ago, or longer if the grace period is."""
    return (base.read_clock() - max(policy.grace, ABANDONED)).isoformat()


def snapshots_in_use(uses: Iterable[Use], policy: Retention) -> set[Name]:
    """Return the snapshots that runs used within the grace period, and the last one that a run of each task used."""
    return _find_recent(policy, uses)


def prompts_served(store: ObjectStore) -> set[Name]:
    """Return the prompts that a server's last report names."""
    return {Name(holding.task, holding.digest) for report in read_server_reports(store) for holding in report.holds}


def prompts_aliased(registry: Registry, task: str, pointers: Iterable[str]) -> set[Name]:
    """Return what aliases of the task name outside the ledger: the store's `pointers` (keys), as servers read them, and
    MLflow's aliases, as people set them.
    """
    bodies = read_all(registry.store, pointers)
    shown = [promotion for body in bodies.values() if (promotion := pointer_in(body))]
    named = {Name(promotion.task, promotion.digest) for promotion in shown}
    named |= {Name(promotion.task, promotion.beside.digest) for promotion in shown if promotion.beside}
    aliases = registry.mlflow.aliases(task) if registry.mlflow else {}
    digests = registry.mlflow.digests(task) if registry.mlflow and aliases else {}
    return named | {Name(task, digests.get(number, "")) for number in aliases.values()}


def _find_recent(policy: Retention, uses: Iterable[Use]) -> set[Name]:
    """What was used within the grace period, and what was used last of each task."""
    used: set[Name] = set()
    last: dict[str, Use] = {}
    for use in uses:
        last[use.name.task] = max(last.get(use.name.task, use), use, key=lambda item: (item.at, item.name.digest))
        if policy.is_fresh(datetime.fromisoformat(use.at)):
            used.add(use.name)
    return used | {use.name for use in last.values()}
