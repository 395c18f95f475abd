"""What a prompt has to beat: the commonest answer, the bare base model, and the base model behind a hard prompt.

Each baseline has a report of its own with stored results per row, so that a gate compares a prompt with it on the same
rows. It is measured once for the same base, template, answers, examples and rows.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import LabelTokens, apply_scoring, cut_fields, encode_text, is_cut, label_tokens
from ptpipeline.evaluation.answers import measure_generated, measure_labels, measure_rankings
from ptpipeline.evaluation.examples import Front, Writer
from ptpipeline.evaluation.key import evaluation_key
from ptpipeline.evaluation.measurement import Measurement, Sample
from ptpipeline.evaluation.metrics import majority
from ptpipeline.evaluation.results import find_flaw, store_results
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.progress import phase
from ptpipeline.prompts.placement import count_extra_tokens, drop_bos
from ptpipeline.records.base import digest_of
from ptpipeline.records.data import Split
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.reports import Baseline, Report
from ptpipeline.serving.answers import Opening, generate
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import results_key
from ptpipeline.task.task import HardPrompt
from ptpipeline.task.template import Template, read_template


class Setup(NamedTuple):
    """How a prompt is measured: on which split, with which slices and hard prompt.

    `known` returns the report of an evaluation key if it was measured before; `save` keeps each new baseline's report
    at once. `keep` gets the texts that the prompt generated, by row id, for the probes of this process. `messages` are
    those of the task, if its template is a chat.
    """

    split: Split = "test"
    slices: Sequence[str] = ()
    hard_prompt: HardPrompt | None = None
    known: Callable[[str], Report | None] = lambda key: None
    save: Callable[[Report], None] = lambda report: None
    keep: Callable[[dict[str, str]], None] = lambda texts: None
    messages: Sequence[tuple[str, str]] = ()


class Bare(NamedTuple):
    """The base model without a soft prompt, with a manifest's template and answers, and the encoded rows [rows] of a
    sample; the majority and the examples of the hard prompt come from the `train` rows.
    """

    base: FrozenBase
    manifest: PromptManifest
    sample: Sample
    encoded: list[list[int]]
    train: list[Row]

    @classmethod
    def of(cls, base: FrozenBase, manifest: PromptManifest, sample: Sample, train: list[Row]) -> "Bare":
        """Encode the sample's rows; raises ContextError if a row does not fit the base."""
        bare = cls(base, manifest, sample, [], train)
        return bare._replace(encoded=bare._encode(read_template(manifest)))

    def _encode(self, template: Template) -> list[list[int]]:
        """The rows in a template; each is cut, if it is, as it is in the manifest's own."""
        base, manifest = self.base, self.manifest
        longest = (
            manifest.generate.max_new_tokens
            if manifest.generate
            else label_tokens(manifest.task, manifest.labels, base.encode).longest
        )
        what = f"{self.sample.split} rows of {manifest.task}"
        limit = base.context - longest
        if is_cut(manifest.too_long):  # the base reads what the prompt reads
            limit = min(limit, manifest.max_input_tokens + count_extra_tokens(manifest.placement))
        own = read_template(manifest)
        cut = (cut_fields(own, row.fields, limit, base.encode, manifest.too_long) for row in self.sample.rows)
        return [encode_text(template, fields, limit, what, base.encode) for fields in cut]

    def _find_labels(self, template: Template) -> LabelTokens:
        """The label tokens; if the manifest says so, calibrated by texts that begin as the rows do."""
        manifest = self.manifest
        plain = label_tokens(manifest.task, manifest.labels, self.base.encode)
        return apply_scoring(plain, manifest.scoring, template, self.base.context - plain.longest, self.base.encode)

    @property
    def identity(self) -> dict[str, Any]:
        """What the answers depend on besides the base, the rows and what stands in front of them."""
        fields = self.manifest.to_json()
        parts = {name: fields.get(name) for name in ("template", "labels", "generate", "scoring")}
        if self.manifest.chat is not None:  # its control tokens, which a text of the same letters does not have
            parts["chat"] = self.manifest.chat.parts
        if is_cut(self.manifest.too_long):
            parts |= {name: fields[name] for name in ("too_long", "max_input_tokens", "placement")}
        return parts

    def measure(self, before: Front) -> Measurement:
        """Measure every row behind a front; if that has tokens, rows lose their own BOS."""
        manifest, front = self.manifest, before.ids
        encoded = self.encoded if before.turn is None else self._encode(before.turn)
        texts = [self._put_behind(front, ids) for ids in encoded]
        if manifest.generate:
            limit = manifest.generate.max_new_tokens
            return measure_generated(
                self.sample.answers, generate(self.base, None, [Opening(ids, limit, 0) for ids in texts])
            )
        labels = self._find_labels(before.turn or read_template(manifest))
        free = tuple(
            tuple(self._put_behind(front, ids)) for ids in labels.content_free if self._put_behind(front, ids) != front
        )
        labels = labels._replace(content_free=free)
        return measure_rankings(
            self.sample.answers, labels.names, rank(self.base, None, [Query(ids, labels, 0) for ids in texts])
        )

    def _put_behind(self, front: list[int], ids: Sequence[int]) -> list[int]:
        """Return the token ids of front and text as one text, in which BOS stands once."""
        return [*front, *drop_bos(ids, self.base.bos)] if front else list(ids)

    def measure_constant(self, answer: str) -> Measurement:
        """Measure the same answer to every row."""
        answers = [answer] * len(self.sample.rows)
        if self.manifest.generate:
            return measure_generated(self.sample.answers, answers)
        return measure_labels(self.sample.answers, answers, list(self.manifest.labels))

    def write_front(self, wanted: HardPrompt, messages: Sequence[tuple[str, str]] = ()) -> Front:
        """Return the hard prompt in the room that the longest row leaves; empty if none fits or none is wanted."""
        if wanted.empty:
            return Front([])
        labels = self._find_labels(read_template(self.manifest)) if self.manifest.labels else None
        answer = self.manifest.generate.max_new_tokens if self.manifest.generate else labels.longest if labels else 0
        free = labels.content_free if labels else ()
        room = self.base.context - answer - max(len(ids) for ids in (*self.encoded, *free))
        return Writer(self.base, self.manifest, messages).write(wanted, self.train, room)


class _Method(NamedTuple):
    """A way to answer without a soft prompt: what its answers depend on, and how it is measured."""

    identity: dict[str, Any]
    measure: Callable[[], Measurement]


def measure_baselines(bare: Bare, store: ObjectStore, setup: Setup) -> dict[Baseline, Report]:
    """Return the report of each baseline; one is measured now if it is not known, or its results are gone or
    altered.

    `hard_prompt` is left out if the setup names none, or the context leaves no room for one. Raises ContextError if a
    row does not fit the base.
    """
    commonest = majority(Counter(row.label for row in bare.train))
    methods: dict[Baseline, _Method] = {
        "majority": _Method(bare.identity | {"answer": commonest}, lambda: bare.measure_constant(commonest)),
        "zero_shot": _Method(bare.identity, lambda: bare.measure(Front([]))),
    }
    front = bare.write_front(setup.hard_prompt, setup.messages) if setup.hard_prompt is not None else Front([])
    if front.ids:
        turn = {"turn": [part.text for part in front.turn.parts]} if front.turn else {}
        identity = bare.identity | {"front": front.ids} | turn
        if bare.manifest.scoring.calibrated and bare.base.bos is not None:
            identity |= {"bos": "once"}  # before, it stood behind the front again in texts without content
        methods["hard_prompt"] = _Method(identity, lambda: bare.measure(front))
    return {
        kind: _measure_once(
            bare, {"baseline": kind, "task": bare.manifest.task} | method.identity, method, store, setup
        )
        for kind, method in methods.items()
    }


def _measure_once(bare: Bare, identity: dict[str, Any], method: _Method, store: ObjectStore, setup: Setup) -> Report:
    started, sample = time.perf_counter(), bare.sample
    digests = [digest_of(identity | {"base": ref.fingerprint}) for ref in bare.base.known]
    keys = [evaluation_key(digest, sample.identity, str(bare.base.dtype)) for digest in digests]
    for key in keys:
        known = setup.known(key)
        if known is not None and find_flaw(store, known) is None:
            return known
    digest, key = digests[0], keys[0]
    with phase(str(identity["baseline"])):
        measured = method.measure()
    rows_key = results_key(bare.manifest.task, key)
    sha256 = store_results(store, rows_key, sample.columns([len(ids) for ids in bare.encoded]) | measured.columns)
    report = Report(
        task=bare.manifest.task,
        digest=digest,
        evaluation_key=key,
        snapshot=sample.snapshot.digest,
        test_digest=sample.digest,
        rows=len(sample.rows),
        rows_key=rows_key,
        prompt=measured.scores,
        zero_shot=measured.scores,
        majority=measured.scores,
        interval=measured.interval,
        compute_dtype=str(bare.base.dtype).removeprefix("torch."),
        seconds=round(time.perf_counter() - started, 2),
        split=sample.split,
        rows_sha256=sha256,
    )
    setup.save(report)
    return report
