"""The results of stages, kept so that none needs to run twice: snapshots, trainings, evaluations, verdicts,
publications.
"""

from typing import Any, ClassVar

from sqlalchemy import Connection, Select, Table, select

from ptpipeline.gate.disclosure import Disclosed, describe_failures, disclose
from ptpipeline.records.base import Grown
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PRODUCTION
from registry.ledger import tables
from registry.ledger.clock import read_time, time_after, time_behind
from registry.ledger.database import Database, put
from registry.ledger.events import emit
from registry.ledger.tombstone import lock_name, take_over


class Publication(Grown):
    """How a version came to be: its training and the git commit, its plots (name -> key in the store), the words near
    it, experiments with it, and what it gets wrong.
    """

    LATER: ClassVar = frozenset({"neighbours", "wayward", "mistakes"})

    tuned: TunedPrompt
    commit: str | None
    plots: dict[str, str]
    neighbours: str | None = None
    wayward: tuple[str, ...] = ()
    mistakes: str | None = None


class Results:
    """Records under their keys. Every method is one transaction and raises ServiceUnavailable if the database does not
    answer.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.url = url

    def close(self) -> None:
        """Give the database connections back."""
        self.database.close()

    def snapshot_for(self, task: str, source_key: str) -> Snapshot | None:
        """Return the snapshot that was made of that source."""
        return self._snapshot(tables.snapshot.c.task == task, tables.snapshot.c.source_key == source_key)

    def snapshot(self, task: str, digest: str) -> Snapshot | None:
        """Return the snapshot of that digest."""
        return self._snapshot(tables.snapshot.c.task == task, tables.snapshot.c.digest == digest)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Remember the snapshot under its source key as the task's newest; raise LeaseHeld while it is being deleted.

        It is not deleted during the garbage collection's grace period, which starts now.
        """
        key = {"task": snapshot.task, "source_key": snapshot.source_key}
        with self.database.writing(lock_name(snapshot.task, snapshot.digest)) as connection:
            take_over(self.database, connection, snapshot.task, snapshot.digest)
            at = time_after(connection, tables.snapshot, tables.snapshot.c.task == snapshot.task)
            put(connection, tables.snapshot, key, digest=snapshot.digest, record=snapshot.to_json(), at=at)

    def tuned(self, task: str, training_key: str) -> TunedPrompt | None:
        """Return the prompt that was trained under that key."""
        record = self.database.ask_value(
            select(tables.training.c.record).where(
                tables.training.c.task == task, tables.training.c.training_key == training_key
            )
        )
        return TunedPrompt.model_validate(record) if record else None

    def last_tuned(self, task: str) -> TunedPrompt | None:
        """Return the prompt that the task trained last."""
        record = self.database.ask_value(_newest(tables.training).where(tables.training.c.task == task))
        return TunedPrompt.model_validate(record) if record else None

    def save_tuned(self, *prompts: TunedPrompt) -> None:
        """Remember prompts under their training keys, in place of earlier ones: all or none."""
        with self.database.writing() as connection:
            for tuned in prompts:
                _put_tuned(connection, tuned)

    def report(self, evaluation_key: str) -> Report | None:
        """Return the evaluation that was made under that key."""
        return self._report(tables.evaluation.c.evaluation_key == evaluation_key)

    def report_of(self, task: str, digest: str) -> Report | None:
        """Return the newest evaluation of the prompt of that digest."""
        return self._report(tables.evaluation.c.task == task, tables.evaluation.c.digest == digest)

    def save_report(self, report: Report) -> None:
        """Remember the evaluation under its key."""
        with self.database.writing() as connection:
            _put_report(connection, report)

    def verdict_for(self, gate_key: str) -> Verdict | None:
        """Return the newest verdict under that gate key."""
        return self._verdict(tables.verdict.c.gate_key == gate_key)

    def verdict(self, digest: str) -> Verdict | None:
        """Return the verdict of that digest, as promotions cite it."""
        return self._verdict(tables.verdict.c.verdict == digest)

    def latest_verdict(self, task: str, digest: str) -> Verdict | None:
        """Return the newest verdict on the prompt of that digest."""
        return self._verdict(tables.verdict.c.task == task, tables.verdict.c.digest == digest)

    def disclosed(self, task: str, digest: str) -> Disclosed:
        """Return report and newest verdict of that prompt as people may see them."""
        verdict = self.latest_verdict(task, digest)
        report = self.report(verdict.evaluation_key) if verdict and verdict.figures == "quiet" else None
        return disclose(report or self.report_of(task, digest), verdict)

    def verdicts(self, task: str, digest: str) -> list[Verdict]:
        """Return every verdict on the prompt of that digest, newest first."""
        table = tables.verdict
        query = select(table.c.record).where(table.c.task == task, table.c.digest == digest).order_by(table.c.at.desc())
        return [Verdict.model_validate(row.record) for row in self.database.ask(query)]

    def last_judged(self) -> dict[str, str]:
        """Return when each task last came to a verdict, be it one that it had already, by the task's name."""
        return {row.task: row.at for row in self.database.ask(select(tables.judged))}

    def verdict_times(self, task: str, digest: str) -> dict[str, str]:
        """Return when each verdict on the prompt became the newest, by the verdict's digest, newest first."""
        table = tables.verdict
        mine = select(table.c.verdict, table.c.at).where(table.c.task == task, table.c.digest == digest)
        return {row.verdict: row.at for row in self.database.ask(mine.order_by(table.c.at.desc()))}

    def judging_time(self, verdict: Verdict) -> str | None:
        """Return when the verdict became the newest on its prompt, or becomes it if that is now; None if no other was
        given on that prompt.
        """
        digest, times = verdict.verdict_digest(), self.verdict_times(verdict.task, verdict.digest)
        if not times.keys() - {digest}:
            return None
        newest, at = next(iter(times.items()))
        return at if newest == digest else self.time_behind(at)

    def time_behind(self, at: str) -> str:
        """Return the time now, or just after `at` if that lies in the future by the ledger's clock."""
        with self.database.reading() as connection:
            return time_behind(connection, at)

    def save_verdict(self, verdict: Verdict, at: str | None = None) -> None:
        """Remember the verdict as the newest on its prompt since then, by default from now on; an older one becomes the
        newest again.
        """
        with self.database.writing() as connection:
            put_verdict(connection, verdict, at)

    def publication(self, task: str, digest: str) -> Publication | None:
        """Return how the version of that digest came to be."""
        table = tables.publication
        record = self.database.ask_value(select(table.c.record).where(table.c.task == task, table.c.digest == digest))
        return Publication.model_validate(record) if record else None

    def save_publication(self, publication: Publication, report: Report | None = None) -> None:
        """Remember how the version came to be, with its training and its report, in place of what was known before: all
        or nothing.
        """
        tuned = publication.tuned
        with self.database.writing() as connection:
            _put_tuned(connection, tuned)
            if report:
                _put_report(connection, report)
            at = time_after(connection, tables.publication, tables.publication.c.task == tuned.task)
            key = {"task": tuned.task, "digest": tuned.digest}
            put(connection, tables.publication, key, record=publication.to_json(), at=at)

    def publications_with_texts(self, task: str) -> list[Publication]:
        """Return those of the task's publications whose pages show texts of rows."""
        table = tables.publication
        shown = select(table.c.record).where(table.c.task == task, table.c.record["mistakes"].as_string().is_not(None))
        return [Publication.model_validate(row.record) for row in self.database.ask(shown)]

    def _snapshot(self, *where: Any) -> Snapshot | None:
        record = self.database.ask_value(_newest(tables.snapshot).where(*where))
        return Snapshot.model_validate(record) if record else None

    def _report(self, *where: Any) -> Report | None:
        record = self.database.ask_value(_newest(tables.evaluation).where(*where))
        return Report.model_validate(record) if record else None

    def _verdict(self, *where: Any) -> Verdict | None:
        record = self.database.ask_value(_newest(tables.verdict).where(*where))
        return Verdict.model_validate(record) if record else None


def put_verdict(connection: Connection, verdict: Verdict, at: str | None = None) -> None:
    """Write the verdict as the newest one; if it is that already, it keeps its time, unless `at` is later. The first
    time that a candidate is refused by it, others are told so.

    at: the time that its dossier states. Of two runs that judge one prompt, each with a verdict of its own, the one
    that comes here last need not be the one whose dossier is the newest.
    """
    put(connection, tables.judged, {"task": verdict.task}, at=read_time(connection))
    values = {"gate_key": verdict.gate_key, "task": verdict.task, "digest": verdict.digest, "passed": verdict.passed}
    table, key = tables.verdict, {"verdict": verdict.verdict_digest()}
    mine = select(table.c.verdict, table.c.at).where(table.c.task == verdict.task, table.c.digest == verdict.digest)
    newest = connection.execute(mine.order_by(table.c.at.desc()).limit(1)).first()
    if newest and newest.verdict == verdict.verdict_digest() and (at is None or at <= newest.at):
        return
    at = at or time_after(connection, table, table.c.task == verdict.task, table.c.digest == verdict.digest)
    is_new = connection.scalar(select(table.c.at).where(table.c.verdict == key["verdict"])) is None
    put(connection, table, key, **values, record=verdict.to_json(), at=at)
    if is_new and not verdict.passed and verdict.reveal is None:
        emit(connection, "gate_failed", _describe_refusal(connection, verdict, key["verdict"]))


def _describe_refusal(connection: Connection, verdict: Verdict, digest: str) -> dict[str, Any]:
    """Return what is told to others of a verdict that failed, as far as people may see it."""
    version, head = tables.version, tables.promotion
    mine = select(version.c.number).where(version.c.task == verdict.task, version.c.digest == verdict.digest)
    production = select(head.c.version).where(head.c.task == verdict.task, head.c.alias == PRODUCTION)
    return {
        "task": verdict.task,
        "alias": PRODUCTION,
        "actor": "gate",
        "from": connection.scalar(production.order_by(head.c.seq.desc()).limit(1)),
        "to": connection.scalar(mine),
        "reason": describe_failures(verdict),
        "verdict": digest,
    }


def _put_tuned(connection: Connection, tuned: TunedPrompt) -> None:
    table, key = tables.training, {"task": tuned.task, "training_key": tuned.training_key}
    at = time_after(connection, table, table.c.task == tuned.task)
    put(connection, table, key, record=tuned.to_json(), at=at)


def _put_report(connection: Connection, report: Report) -> None:
    table, key = tables.evaluation, {"evaluation_key": report.evaluation_key}
    values = {"task": report.task, "digest": report.digest, "record": report.to_json()}
    at = time_after(connection, table, table.c.task == report.task, table.c.digest == report.digest)
    put(connection, table, key, **values, at=at)


def _newest(table: Table) -> Select[Any]:
    return select(table.c.record).order_by(table.c.at.desc()).limit(1)
