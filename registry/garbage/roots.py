"""What has to be kept: roots by the ledger, by the store and by MLflow, and what each of them consists of or descends
from.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import groupby

from pydantic import Field

from ptpipeline.records import Record
from ptpipeline.serving.servers import read_server_reports
from ptpipeline.storage import ObjectStore
from registry.ledger.usage import Name, PromptUses, Use, VersionNumber
from registry.listing import read_all
from registry.registry import Registry
from registry.versions.projection import pointer_in

ABANDONED = timedelta(days=1)


class Retention(Record):
    """What is kept beside what is in use: each task's newest `candidates` versions, and what is younger than
    `grace`.
    """

    candidates: int = Field(default=10, ge=1)
    grace: timedelta = Field(default=timedelta(hours=24), ge=timedelta(0))

    def fresh(self, at: datetime) -> bool:
        """Whether that time lies within the grace period."""
        return datetime.now(UTC) - at < self.grace


def prompts_in_use(uses: PromptUses, policy: Retention) -> set[Name]:
    """Prompts that the ledger needs: ever promoted or released, being published, published lately, or among the newest.

    A run presents its candidate to the ledger each time, so what today's recipe and rows lead to is published lately.
    """
    named = {use.name for use in uses.intents if use.at >= abandoned(policy)} | uses.promoted
    for release in uses.releases:
        numbers = {VersionNumber(task, number) for task, number in release.items()}
        named |= {uses.versions[number] for number in numbers & uses.versions.keys()}
    for _, numbered in groupby(sorted(uses.versions), key=lambda version: version.task):
        named |= {uses.versions[version] for version in list(numbered)[-policy.candidates :]}
    return named | _lately(policy, uses.published)


def abandoned(policy: Retention) -> str:
    """A publish that began before this time, and was not begun again since, is given up: a day, or the grace period
    where that is longer.
    """
    return (datetime.now(UTC) - max(policy.grace, ABANDONED)).isoformat()


def snapshots_in_use(uses: Iterable[Use], policy: Retention) -> set[Name]:
    """Snapshots that a run used lately, and the last one that any run of each task used."""
    return _lately(policy, uses)


def held_elsewhere(store: ObjectStore) -> set[Name]:
    """Prompts that a server's last report names."""
    return {Name(holding.task, holding.digest) for report in read_server_reports(store) for holding in report.holds}


def pointed(registry: Registry, task: str, pointers: Iterable[str]) -> set[Name]:
    """What aliases of the task name outside the ledger: the store's pointers, as servers read them, and MLflow's, as
    people set them.
    """
    bodies = read_all(registry.store, pointers)
    found = {Name(promotion.task, promotion.digest) for body in bodies.values() if (promotion := pointer_in(body))}
    aliases = registry.mlflow.aliases(task) if registry.mlflow else {}
    digests = registry.mlflow.digests(task) if registry.mlflow and aliases else {}
    return found | {Name(task, digests.get(number, "")) for number in aliases.values()}


def _lately(policy: Retention, uses: Iterable[Use]) -> set[Name]:
    """What was used within the grace period, and what each task used last."""
    used: set[Name] = set()
    last: dict[str, Use] = {}
    for use in uses:
        last[use.name.task] = max(last.get(use.name.task, use), use, key=lambda item: (item.at, item.name.digest))
        if policy.fresh(datetime.fromisoformat(use.at)):
            used.add(use.name)
    return used | {use.name for use in last.values()}
