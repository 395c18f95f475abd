"""What a stored prompt makes of its labels and of a text: token ids, by the base's own tokenizer."""

from ptpipeline.data.tokens import LabelTokens, apply_scoring, encode_text, label_tokens
from ptpipeline.errors import DataError
from ptpipeline.models.vocabulary import Vocabulary
from ptpipeline.prompts.placement import build_text_encoder
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.task.template import Fields, read_template


def encode_labels(base: Vocabulary, manifest: PromptManifest) -> LabelTokens:
    """Return the prompt's labels, with what its scoring needs.

    Raises ContextError if the template alone does not fit beside prompt and answer.
    """
    encode = build_text_encoder(base, manifest.placement) if manifest.scoring.calibrated else base.encode
    labels = label_tokens(manifest.task, manifest.labels, base.encode)
    return apply_scoring(labels, manifest.scoring, read_template(manifest), manifest.max_input_tokens, encode)


def encode_fields(base: Vocabulary, manifest: PromptManifest, fields: Fields, what: str) -> list[int]:
    """Return the token ids of the rendered text, cut if the prompt's task cuts texts that are too long.

    Raises ContextError naming `what` if it does not fit, DataError if a field is missing or unknown.
    """
    encode = build_text_encoder(base, manifest.placement)
    return encode_text(read_template(manifest), fields, manifest.max_input_tokens, what, encode, manifest.too_long)


def check_labels(manifest: PromptManifest) -> None:
    """Raise DataError if the prompt has no labels."""
    if not manifest.labels:
        raise DataError(f"{manifest.task} answers {manifest.answers}: it has no labels to rank; ask for a text")


def find_limit(manifest: PromptManifest) -> int:
    """Return how many tokens the prompt generates at most; raises DataError if it answers with labels."""
    if manifest.generate is None:
        raise DataError(f"{manifest.task} answers {manifest.answers}: it generates no text; ask for a label")
    return manifest.generate.max_new_tokens
