"""How probes query a loaded prompt: on the same rows each night, with texts that may no longer fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.rows import Row, normalise
from ptpipeline.data.tokens import cut_fields, encode_text
from ptpipeline.errors import ContextError
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.placement import build_text_encoder, count_extra_tokens
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.task.template import Fields, read_template


class Known(NamedTuple):
    """What evaluations of the same rows have answered, by row id; what is not known is computed.

    Scores of the labels [labels] behind the prompt, and on the base without it; and texts generated behind the prompt.
    """

    prompted: Mapping[str, Sequence[float]] = {}
    bare: Mapping[str, Sequence[float]] = {}
    texts: Mapping[str, str] = {}


NOTHING = Known()


def ask(engine: Engine, artifact: Artifact, texts: Sequence[Fields]) -> list[str]:
    """Return the likeliest label of each text behind the loaded prompt, or the generated text, normalised."""
    if artifact.manifest.generate is not None:
        return [normalise(text) for text in engine.generate(build_questions(artifact, texts))]
    names = list(artifact.manifest.labels)
    return [names[int(scores.argmax())] for scores in engine.score_labels(build_questions(artifact, texts))]


def build_questions(artifact: Artifact, texts: Sequence[Fields]) -> list[Question]:
    """Return each text as a question to the loaded prompt."""
    digest = artifact.digest  # once: it hashes the manifest
    return [Question(digest, fields) for fields in texts]


def score_rows(engine: Engine, artifact: Artifact, rows: Sequence[Row], known: Known) -> list[Tensor]:
    """Return the score of every label [labels] of each row behind the loaded prompt; known scores are not computed."""
    asked = [row for row in rows if row.id not in known.prompted]
    scores = iter(engine.score_labels(build_questions(artifact, [row.fields for row in asked])))
    return [torch.tensor(known.prompted[row.id]) if row.id in known.prompted else next(scores) for row in rows]


def answer_rows(engine: Engine, artifact: Artifact, rows: Sequence[Row], known: Known) -> list[str]:
    """Return what `ask` returns for the rows' texts; answers that are known are not computed."""
    if artifact.manifest.generate is not None:
        answers = iter(ask(engine, artifact, [row.fields for row in rows if row.id not in known.texts]))
        return [normalise(known.texts[row.id]) if row.id in known.texts else next(answers) for row in rows]
    names = list(artifact.manifest.labels)
    return [names[int(scores.argmax())] for scores in score_rows(engine, artifact, rows, known)]


def change_fields(fields: Fields, change: Callable[[str], str], named: Sequence[str] = ()) -> Fields:
    """Return the same text with the named fields changed, or every field if none is named."""
    return {name: text if named and name not in named else change(text) for name, text in fields.items()}


def fits(engine: Engine, artifact: Artifact, fields: Fields) -> bool:
    """Return whether a text has tokens, and no more of them than fit beside the prompt, if it is not cut."""
    try:
        encode_prompted(engine, artifact, fields)
    except ContextError:
        return False
    return True


def encode_prompted(engine: Engine, artifact: Artifact, fields: Fields) -> list[int]:
    """Return the token ids of a text as it stands behind the prompt; raises ContextError if they do not fit."""
    manifest = artifact.manifest
    encode = build_text_encoder(engine.base, manifest.placement)
    what = f"a probed text of {manifest.task}"
    return encode_text(read_template(manifest), fields, manifest.max_input_tokens, what, encode, manifest.too_long)


def cut_prompted(engine: Engine, artifact: Artifact, fields: Fields) -> Fields:
    """Return the fields as they stand behind the prompt: cut if they do not fit and the prompt's texts are cut."""
    manifest = artifact.manifest
    encode = build_text_encoder(engine.base, manifest.placement)
    return cut_fields(read_template(manifest), fields, manifest.max_input_tokens, encode, manifest.too_long)


def encode_bare(engine: Engine, artifact: Artifact, fields: Fields) -> list[int]:
    """Return the token ids of the same text for the base without the prompt."""
    manifest = artifact.manifest
    limit = manifest.max_input_tokens + count_extra_tokens(manifest.placement)
    what = f"a probed text of {manifest.task}"
    return encode_text(read_template(manifest), fields, limit, what, engine.base.encode, manifest.too_long)
