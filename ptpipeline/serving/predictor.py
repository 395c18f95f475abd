"""`ptpipeline.load("task@alias").predict([...])`: answers in two calls, from the object store alone."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptpipeline.errors import DataError
from ptpipeline.models.base import prepare_base
from ptpipeline.progress import advance, expect, phase
from ptpipeline.records.serving import Answer
from ptpipeline.serving.resolver import Resolved, resolve
from ptpipeline.serving.seen import Memory
from ptpipeline.settings import Settings, check_place, load_settings
from ptpipeline.storage.signed import open_signed_store
from ptpipeline.task.template import Fields, read_template

if TYPE_CHECKING:
    from torch import Tensor

    from ptpipeline.serving.engine import Engine, Question

PORTION = 512  # texts whose answers are told together: enough to fill batches with texts of one length
_HALF = re.compile("[\ud800-\udfff]")  # bytes of the command line that are not UTF-8 come as such


@dataclass(frozen=True)
class Predictor:
    """One resolved prompt on its base model. It keeps answering with the version that it resolved."""

    engine: "Engine"
    resolved: Resolved

    @property
    def fields(self) -> list[str]:
        """The fields of a text that the template has, sorted."""
        return read_template(self.resolved.artifact.manifest).names

    def predict(self, texts: Iterable[str | Fields]) -> list[Answer]:
        """Return each text's answer: the most likely label and the probability of each, or the generated text.

        A text is a string if the prompt's template has one field, else its fields by name. Each answer also names the
        version that gave it. Raises ContextError if a text does not fit beside the prompt, DataError if a field is
        missing, unknown, or not Unicode.
        """
        given = list_texts(texts)
        asked = [(f"text {number} for {self.resolved.name}", text) for number, text in enumerate(given, 1)]
        return self._answer(self._list_questions(asked))

    def _list_questions(self, asked: Sequence[tuple[str, str | Fields]]) -> list["Question"]:
        """Return what the engine is asked; before each text stands what messages call it."""
        from ptpipeline.serving.engine import Question

        digest = self.resolved.artifact.digest  # once: it hashes the manifest
        return [Question(digest, fields, what) for what, fields in self._name_fields(asked)]

    def _answer(self, questions: Sequence["Question"]) -> list[Answer]:
        artifact = self.resolved.artifact
        version, digest = self.resolved.name, artifact.digest
        if artifact.manifest.generate is not None:
            return [
                Answer(label=None, probabilities={}, version=version, digest=digest, text=text)
                for text in self.engine.generate(questions)
            ]
        return [self._build_answer(scores, digest) for scores in self.engine.score_labels(questions)]

    def _name_fields(self, asked: Sequence[tuple[str, str | Fields]]) -> Iterator[tuple[str, Fields]]:
        """Yield each text by field. A string among them needs a template of one field."""
        template = read_template(self.resolved.artifact.manifest)
        for what, text in asked:
            fields = template.name_fields(text, what)
            if any(isinstance(part, str) and _HALF.search(part) for part in fields.values()):
                raise DataError(f"{what}: not Unicode, because it holds half of a surrogate pair; decode it again")
            yield what, fields

    def answer_lines(self, lines: Sequence[str | Fields], place: Callable[[int], str]) -> Iterator[Answer]:
        """Yield one answer per line, as `predict` gives it, a portion at a time: who asked much has what was answered
        until the end, or a power cut. A blank line's has no label, or an empty text.

        place: names a line in messages by its number from 1. Raises what `predict` raises, before the first answer.
        """
        asked = [(place(number), line) for number, line in enumerate(lines, 1) if not _is_blank(line)]
        questions = self._list_questions(asked)
        for question in questions:
            self.engine.render(question)
        answers = self._answer_in_portions(questions)
        for line in lines:
            yield self._build_blank() if _is_blank(line) else next(answers)

    def _answer_in_portions(self, questions: Sequence["Question"]) -> Iterator[Answer]:
        with phase("", whole=True):
            expect(len(questions), "texts")
            for start in range(0, len(questions), PORTION):
                portion = questions[start : start + PORTION]
                yield from self._answer(portion)
                advance(len(portion))

    def _build_blank(self) -> Answer:
        artifact = self.resolved.artifact
        text = None if artifact.manifest.generate is None else ""
        return Answer(label=None, probabilities={}, version=self.resolved.name, digest=artifact.digest, text=text)

    def _build_answer(self, scores: "Tensor", digest: str) -> Answer:
        from ptpipeline.serving.ranking import name_probabilities  # torch is imported by now

        names = list(self.resolved.artifact.manifest.labels)
        probabilities = name_probabilities(self.resolved.name, names, scores)
        label = max(probabilities, key=lambda name: probabilities[name])
        return Answer(label=label, probabilities=probabilities, version=self.resolved.name, digest=digest)


def list_texts(given: Iterable[str | Fields]) -> list[str | Fields]:
    """Return the texts of any series: a generator can be read once alone.

    Raises DataError for one text, and for a table, which would give the names of its columns.
    """
    if isinstance(given, str | bytes | Mapping):
        raise DataError("predict takes a list of texts: predict([text])")
    if hasattr(given, "columns"):
        raise DataError(
            "predict takes a list of texts, and not a table: give a column as a list, as table['text'].tolist(), or "
            "all fields as table.to_dict('records')"
        )
    try:
        return list(given)
    except TypeError:
        raise DataError(f"predict takes a list of texts, found {type(given).__name__}: predict([text])") from None


def _is_blank(line: str | Fields) -> bool:
    texts = [line] if isinstance(line, str) else line.values()
    return not any(text.strip() for text in texts)


def load(reference: str, settings: Settings | None = None, allow_older: bool = False) -> Predictor:
    """Return the predictor of `TASK`, `TASK@ALIAS` or `TASK@N`; no registry and no database is read.

    allow_older: accept a signed pointer that is older than the one that this reader has seen.
    Raises NotFound (also if neither a project nor a stack is here), ArtifactError, BaseModelError (another base than
    the prompt's), ServiceUnavailable.
    """
    settings = settings or load_settings()
    check_place(settings, "store")
    return open_predictor(resolve(open_signed_store(settings), reference, Memory(settings.home, allow_older)), settings)


def open_predictor(resolved: Resolved, settings: Settings) -> Predictor:
    """Return the predictor of a version on its base model. Raises BaseModelError, ArtifactError, ServiceUnavailable."""
    with ThreadPoolExecutor(1) as pool:
        preparing = pool.submit(prepare_base, resolved.artifact.manifest.base_model.name, settings)
        # The weights are hashed while torch is imported: each takes a second, and one needs no interpreter.
        from ptpipeline.serving.engine import open_engine

        prepared = preparing.result()
    engine = open_engine(prepared, settings)
    engine.load(resolved.artifact, resolved.members)
    return Predictor(engine, resolved)
