"""The evaluation key: a report with the same key is the same measurement. Imports no torch."""

from ptpipeline.records.base import digest_of
from ptpipeline.records.data import SplitInfo
from ptpipeline.task.task import HardPrompt

SCORING_VERSION = 2  # raise by one if the same prompt and rows would be scored differently


def rows_identity(split: SplitInfo) -> str:
    """Return the identity of measured rows: their digest, with that of their slices if they have any, because results
    repeat the slices.
    """
    return split.digest if split.slices is None else digest_of([split.digest, split.slices])


def evaluation_key(digest: str, rows: str, compute_dtype: str, hard_prompt: HardPrompt | None = None) -> str:
    """Return the digest of prompt, measured rows (`rows_identity`), scoring and hard prompt.

    The prompt's digest covers base, template and labels.
    """
    scoring = {"method": "rank", "version": SCORING_VERSION, "dtype": compute_dtype.removeprefix("torch.")}
    beside = (
        {"hard_prompt": hard_prompt.model_dump(mode="json")}
        if hard_prompt is not None and not hard_prompt.empty
        else {}
    )
    return digest_of({"prompt": digest, "test": rows, "scoring": scoring, **beside})
