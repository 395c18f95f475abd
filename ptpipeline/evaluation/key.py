"""The evaluation key: a report with the same key is the same measurement. Imports no torch."""

from ptpipeline.records.base import digest_of
from ptpipeline.records.data import SplitInfo
from ptpipeline.settings import COMPUTE_TYPES
from ptpipeline.task.task import HardPrompt

SCORING_VERSION = 3  # raise by one if the same prompt and rows would be scored differently


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


def list_keys(digest: str, rows: str, compute_dtype: str | None, hard_prompt: HardPrompt | None) -> list[str]:
    """Return the keys under which a measurement counts: that of the compute type, or of each type if it is None.

    Their order is the same on every machine, so that all find the same report.
    """
    types = COMPUTE_TYPES if compute_dtype is None else (compute_dtype,)
    return [evaluation_key(digest, rows, name, hard_prompt) for name in types]
