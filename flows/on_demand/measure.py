"""Versions measured on demand: one on rows of a person's own, or two against each other. It is no gate, and takes no
look.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.stages.judge import Judging
from ptpipeline.errors import DataError, NotFound
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble
from ptpipeline.records import PairedDifference, Record, Scores, SplitInfo, TextScores, digest_of
from ptpipeline.task.task import Source, SplitSpec, Task, find_task
from registry.ledger.tombstone import collected_sentence

if TYPE_CHECKING:
    from ptpipeline.data.rows import CheckedRows
    from ptpipeline.evaluation.compare import Results
    from ptpipeline.evaluation.measurement import Measurement, Sample

FORMATS = ("csv", "tsv", "jsonl", "parquet")
NO_GATE = (
    "no look was spent on this: a p seen here is none that the gate may use, since nobody counts how often rows "
    "are looked at this way"
)


class FileReport(Record):
    """A version on the rows of a file: scores and 95% intervals by what answered: the prompt, and each baseline.

    `left_out` counts the rows that the checks left out, by check; `trained_on` those that the version, or what it
    descends from, was trained on: they are measured, and flatter it.
    """

    task: str
    version: int
    file: str
    rows: int
    left_out: dict[str, int]
    trained_on: int
    scores: dict[str, Scores | TextScores]
    interval: dict[str, dict[str, tuple[float, float]]]
    compute_dtype: str


class Changed(Record):
    """A row that the two versions answer differently: predicted labels, or the gate's metric of the texts; `text` where
    it is asked for.
    """

    id: str
    label: str | None
    before: str | float
    after: str | float
    text: str | None = None


class Tally(Record):
    """Rows of a true label (of all rows where answers are texts): how many were won, lost, and wrong before and after
    in another way.
    """

    label: str
    rows: int
    won: int
    lost: int
    wrong_otherwise: int


class Diff(Record):
    """Version `after` against version `before` on the current test rows that neither was trained on.

    `better` tests whether the later one is better, `worse` is the same the other way round.
    """

    task: str
    before: int
    after: int
    snapshot: str
    better: PairedDifference
    worse: PairedDifference
    tallies: list[Tally]
    changed: list[Changed]
    note: str = NO_GATE


class _Version(NamedTuple):
    task: Task
    number: int
    artifact: Artifact

    @property
    def name(self) -> str:
        return f"{self.task.name}@{self.number}"


class Measuring(Judging):
    """The two measuring verbs over one set of settings."""

    def on_file(self, named: tuple[str, int], path: Path, form: str | None = None) -> FileReport:
        """The version of that task and number on the rows of a file with the task's columns; nothing is kept.

        Raises DataError for a file that ingest would refuse, is not UTF-8 or has fewer than two rows, ContextError for
        a row that does not fit, NotFound where the version, or the rows that it was trained on, are gone.
        """
        version = self._version(*named)
        own = _with_source(version.task, path, form)
        self._check_answers(version, own)
        checked = _read(own, path)
        sample = self._sample(version, checked, path)
        return FileReport(
            task=version.task.name,
            version=version.number,
            file=str(path),
            rows=len(sample.rows),
            left_out={
                check.name: check.count for check in checked.checks if check.count and check.outcome in ("warned", "ok")
            },
            trained_on=len(sample.rows)
            - len(self._unseen(version.task, [row.id for row in sample.rows], version.artifact.digest)),
            compute_dtype=str(self.engine(version.artifact.manifest.base_model.name).base.dtype).removeprefix("torch."),
            **self._figures(version, sample, checked),
        )

    def diff(self, one: tuple[str, int], other: tuple[str, int], texts: bool = False) -> Diff:
        """The second version against the first, row by row, from stored reports or measured now.

        Raises NotFound where they are of two tasks or gone, DataError where their answers are of two kinds or fewer
        than two rows compare.
        """
        from ptpipeline.evaluation.compare import Results

        if one[0] != other[0]:
            raise NotFound(
                f"{one[0]}@{one[1]} and {other[0]}@{other[1]} are versions of two tasks; `ptp diff` compares "
                "two of one task"
            )
        before, after = self._version(*one), self._version(*other)
        self._check_answers(before, after.task)
        self._check_answers(after, before.task)
        task, snapshot = before.task, self.ingest(before.task)
        reports = [self.measured(task, version.artifact.digest, snapshot) for version in (before, after)]
        old, new = (Results.of(self.registry.store, report) for report in reports)
        rows = self._unseen(task, self._unseen(task, old.ids, before.artifact.digest), after.artifact.digest)
        better, worse = (self._compared(task, pair, rows, 0.0) for pair in ((new, old), (old, new)))
        if isinstance(better, str) or isinstance(worse, str):
            raise DataError(f"{before.name} and {after.name} do not compare: {better}")
        changed = _changed(task, (old, new), rows)
        return Diff(
            task=task.name,
            before=before.number,
            after=after.number,
            snapshot=snapshot.digest,
            better=better,
            worse=worse,
            tallies=_tallies(task, (old, new), rows),
            changed=self._with_texts(snapshot.digest, task, changed) if texts else changed,
        )

    def _version(self, task: str, number: int) -> _Version:
        found = find_task(self.settings.tasks, task)
        version = self.registry.ledger.version(task, number)
        if version.collected:
            raise NotFound(collected_sentence(task, version.digest))
        return _Version(found, number, read_artifact(self.registry.store, task, version.digest))

    def _check_answers(self, version: _Version, task: Task) -> None:
        """DataError where the version answers other labels than the task's rows have."""
        manifest = version.artifact.manifest
        if set(manifest.labels) != set(task.labels):
            now = f"labels {', '.join(task.labels)}" if task.labels else "free text"
            raise DataError(
                f"{version.name} answers {manifest.answers}, and the rows of task {task.name} have {now} now: "
                "it cannot be measured on them; take a version trained since"
            )

    def _sample(self, version: _Version, checked: "CheckedRows", path: Path) -> "Sample":
        """The file's rows as a test split, in an order that depends on the rows alone, each of which fits beside the
        prompt.
        """
        from ptpipeline.data.snapshot import identified
        from ptpipeline.data.tokens import encode_text
        from ptpipeline.evaluation.measurement import Sample
        from ptpipeline.prompts.placement import build_text_encoder

        manifest = version.artifact.manifest
        encode = build_text_encoder(self.engine(manifest.base_model.name).base, manifest.placement)
        for row in checked.rows:  # the engine would number them as it gets them
            encode_text(manifest.template, row.text, manifest.max_input_tokens, f"{path}: row {row.number}", encode)
        rows = sorted(identified(checked.rows), key=lambda row: row.id)
        if len(rows) < 2:
            raise DataError(f"{path}: {len(rows)} row is left after the checks; an interval needs two")
        test = SplitInfo(rows=len(rows), labels={}, digest=digest_of([[*row[:3]] for row in rows]))
        return Sample(
            self.snapshot(version.task.name, manifest.snapshot).model_copy(update={"test": test}), "test", rows
        )

    def _figures(self, version: _Version, sample: "Sample", checked: "CheckedRows") -> dict[str, dict[str, Any]]:
        """Scores and intervals of the prompt and of the baselines, which learn from the rows that the version was
        trained on.
        """
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.evaluation.baselines import Bare, Setup, baselines
        from ptpipeline.evaluation.evaluate import answered
        from ptpipeline.prompts.signature import open_prompts

        store, engine = self.registry.store, self.engine(version.artifact.manifest.base_model.name)
        engine.load(version.artifact, read_ensemble(store, version.artifact))
        found: Measurement = answered(engine, version.artifact, sample)
        bare = Bare.of(engine.base, version.artifact.manifest, sample, load_split(store, sample.snapshot, "train"))
        with tempfile.TemporaryDirectory(prefix="ptp-evaluate-") as folder:  # results per row go nowhere else
            beside = baselines(
                bare,
                open_prompts(self.settings.model_copy(update={"store": f"file://{folder}"})),
                Setup(hard_prompt=version.task.hard_prompt),
            )
        scores = {"prompt": found.scores} | {kind: report.prompt for kind, report in beside.items()}
        return {
            "scores": scores,
            "interval": {"prompt": found.interval} | {kind: report.interval for kind, report in beside.items()},
        }

    def _with_texts(self, snapshot: str, task: Task, changed: list[Changed]) -> list[Changed]:
        from ptpipeline.data.snapshot import load_split

        texts = {
            row.id: row.text for row in load_split(self.registry.store, self.snapshot(task.name, snapshot), "test")
        }
        return [row.model_copy(update={"text": texts[row.id]}) for row in changed]


# ---------------------------------------------------------------- the file


def _with_source(task: Task, path: Path, form: str | None) -> Task:
    """The task with the file as its source: all rows are for measuring, so what concerns splits is off.

    Raises NotFound where there is no such file, DataError where nothing tells its format.
    """
    if not path.is_file():
        raise NotFound(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; name a file of rows with the "
            f"columns of task {task.name}"
        )
    form = form or path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise DataError(
            f"{path}: its name does not tell its format; give --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )
    source = Source.model_validate({"path": str(path.resolve()), "format": form})
    checks = task.data.checks.model_copy(
        update={"split_overlap": "off", "near_duplicate": "off", "rows_per_label": "off"}
    )
    return task.model_copy(
        update={
            "data": task.data.model_copy(
                update={"source": source, "split": SplitSpec(), "slices": [], "checks": checks}
            )
        }
    )


def _read(task: Task, path: Path) -> "CheckedRows":
    """The rows that pass the checks of ingest; DataError for a text file that is not UTF-8 all through."""
    from ptpipeline.data.rows import check_rows
    from ptpipeline.data.sources import read_rows

    if task.data.source.format != "parquet":
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    raise DataError(f"{path}: line {number} is not UTF-8; save the file as UTF-8") from None
    with tempfile.TemporaryDirectory(prefix="ptp-evaluate-") as folder:
        return check_rows(task, read_rows(task, Path(folder)))


# ---------------------------------------------------------------- two versions


def _changed(task: Task, sides: "tuple[Results, Results]", rows: list[str]) -> list[Changed]:
    column = task.gate.metric if task.generate else "predicted"
    labels = sides[0].column("label", rows) if not task.generate else [None] * len(rows)
    answers = zip(rows, labels, *(side.column(column, rows) for side in sides), strict=True)
    return [
        Changed(id=row, label=label, before=before, after=after)
        for row, label, before, after in answers
        if before != after
    ]


def _tallies(task: Task, sides: "tuple[Results, Results]", rows: list[str]) -> list[Tally]:
    """Per true label; a text is won where its metric is higher."""
    if task.generate:
        before, after = (side.column(task.gate.metric, rows) for side in sides)
        moved = [new - old for old, new in zip(before, after, strict=True)]
        return [
            Tally(
                label="",
                rows=len(rows),
                won=sum(by > 0 for by in moved),
                lost=sum(by < 0 for by in moved),
                wrong_otherwise=0,
            )
        ]
    before, after, truth = (
        side.column(name, rows)
        for side, name in ((sides[0], "predicted"), (sides[1], "predicted"), (sides[0], "label"))
    )
    found = []
    for label in task.labels:
        pairs = [(old, new) for old, new, true in zip(before, after, truth, strict=True) if true == label]
        won, lost = sum(old != label == new for old, new in pairs), sum(old == label != new for old, new in pairs)
        otherwise = sum(old != new and label not in (old, new) for old, new in pairs)
        found.append(Tally(label=label, rows=len(pairs), won=won, lost=lost, wrong_otherwise=otherwise))
    return found
