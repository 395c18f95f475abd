"""What a prompt has to beat: the commonest answer, the bare base model, and the base model behind a prompt in words.

Each is a report of its own with stored results per row, measured once for the same base, template, answers, examples
and rows; so a gate compares a prompt with it on the same rows.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import LabelTokens, encode_text, label_tokens, scored
from ptpipeline.evaluation.examples import Writer
from ptpipeline.evaluation.generated import generated
from ptpipeline.evaluation.key import evaluation_key
from ptpipeline.evaluation.measurement import Measurement, Sample, store_rows
from ptpipeline.evaluation.metrics import majority
from ptpipeline.evaluation.ranked import labelled, ranked
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.records import Baseline, PromptManifest, Report, Split, digest_of
from ptpipeline.serving.answers import Opening, generate
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import results_key
from ptpipeline.task.task import HardPrompt


class Setup(NamedTuple):
    """How a prompt is measured: on which split, with which slices and hard prompt; `known` gives the report of an
    evaluation key where it was measured before, `save` remembers a new baseline's as soon as it is there.
    """

    split: Split = "test"
    slices: Sequence[str] = ()
    hard_prompt: HardPrompt | None = None
    known: Callable[[str], Report | None] = lambda key: None
    save: Callable[[Report], None] = lambda report: None


class Bare(NamedTuple):
    """The base model without a soft prompt, asked as this manifest says, on encoded rows; `train` are rows to learn
    from by reading.
    """

    base: FrozenBase
    manifest: PromptManifest
    sample: Sample
    encoded: list[list[int]]
    train: list[Row]

    @classmethod
    def of(cls, base: FrozenBase, manifest: PromptManifest, sample: Sample, train: list[Row]) -> "Bare":
        """Raises ContextError where a row does not fit the base."""
        longest = (
            manifest.generate.max_new_tokens
            if manifest.generate
            else label_tokens(manifest.task, manifest.labels, base.encode).longest
        )
        what = f"{sample.split} rows of {manifest.task}"
        encoded = [
            encode_text(manifest.template, row.text, base.context - longest, what, base.encode) for row in sample.rows
        ]
        return cls(base, manifest, sample, encoded, train)

    @property
    def labels(self) -> LabelTokens:
        """Label tokens, calibrated where the manifest says so by texts that begin as the rows do."""
        manifest = self.manifest
        plain = label_tokens(manifest.task, manifest.labels, self.base.encode)
        return scored(plain, manifest.scoring, manifest.template, self.base.context - plain.longest, self.base.encode)

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on besides the rows and what stands in front of them."""
        kept = self.manifest.to_json()
        return {"base": self.base.ref.fingerprint} | {
            name: kept.get(name) for name in ("template", "labels", "generate", "scoring")
        }

    def answered(self, front: list[int]) -> Measurement:
        """Every row behind the token ids `front`, which run once; each row's own BOS is left out where there
        are any.
        """
        manifest, skipped = self.manifest, int(bool(front) and self.base.bos is not None)
        with torch.inference_mode():
            cache = self.base.compute_prefix([self.base.embed(torch.tensor(front))]) if front else None
        texts = [ids[skipped:] for ids in self.encoded]
        if manifest.generate:
            limit = manifest.generate.max_new_tokens
            return generated(self.sample.answers, generate(self.base, cache, [Opening(ids, limit, 0) for ids in texts]))
        labels = self.labels
        labels = labels._replace(content_free=tuple(ids[skipped:] for ids in labels.content_free if ids[skipped:]))
        return ranked(
            self.sample.answers, labels.names, rank(self.base, cache, [Query(ids, labels, 0) for ids in texts])
        )

    def majority(self, answer: str) -> Measurement:
        """The same answer to every row."""
        given = [answer] * len(self.sample.rows)
        return (
            generated(self.sample.answers, given)
            if self.manifest.generate
            else labelled(self.sample.answers, given, list(self.manifest.labels))
        )

    def front(self, wanted: HardPrompt) -> list[int]:
        """Token ids of the hard prompt, in the room that the longest row leaves; empty where nothing fits or is
        wanted.
        """
        if wanted.empty:
            return []
        answer = self.manifest.generate.max_new_tokens if self.manifest.generate else self.labels.longest
        free = self.labels.content_free if self.manifest.labels else ()
        room = self.base.context - answer - max(len(ids) for ids in (*self.encoded, *free))
        return Writer(self.base, self.manifest).hard_prompt(wanted, self.train, room)


def baselines(bare: Bare, store: ObjectStore, setup: Setup) -> dict[Baseline, Report]:
    """The report of each baseline, measured now where it is not known or its rows are gone.

    `hard_prompt` is left out where the setup names none, or the context leaves no room for one. Raises ContextError
    where a row does not fit the base.
    """
    commonest = majority(Counter(row.label for row in bare.train))
    measures: dict[Baseline, tuple[dict[str, Any], Callable[[], Measurement]]] = {
        "majority": (bare.identity | {"answer": commonest}, lambda: bare.majority(commonest)),
        "zero_shot": (bare.identity, lambda: bare.answered([])),
    }
    if setup.hard_prompt is not None and (front := bare.front(setup.hard_prompt)):
        measures["hard_prompt"] = (bare.identity | {"front": front}, lambda: bare.answered(front))
    return {
        kind: _remembered(
            bare, digest_of({"baseline": kind, "task": bare.manifest.task} | identity), measure, store, setup
        )
        for kind, (identity, measure) in measures.items()
    }


def _remembered(
    bare: Bare, digest: str, measure: Callable[[], Measurement], store: ObjectStore, setup: Setup
) -> Report:
    started, sample = time.perf_counter(), bare.sample
    key = evaluation_key(digest, sample.identity, str(bare.base.dtype))
    known = setup.known(key)
    if known is not None and store.exists(known.rows_key):
        return known
    found = measure()
    rows_key = results_key(bare.manifest.task, key)
    store_rows(store, rows_key, sample.columns([len(ids) for ids in bare.encoded]) | found.columns)
    report = Report(
        task=bare.manifest.task,
        digest=digest,
        evaluation_key=key,
        snapshot=sample.snapshot.digest,
        test_digest=sample.digest,
        rows=len(sample.rows),
        rows_key=rows_key,
        prompt=found.scores,
        zero_shot=found.scores,
        majority=found.scores,
        interval=found.interval,
        compute_dtype=str(bare.base.dtype).removeprefix("torch."),
        seconds=round(time.perf_counter() - started, 2),
        split=sample.split,
    )
    setup.save(report)
    return report
