"""The evaluation key: a report with the same key is the same measurement. Imports no torch."""

from ptpipeline.records import digest_of

SCORING_VERSION = 1  # raise by one whenever the same prompt and rows would be scored otherwise


def evaluation_key(digest: str, test_digest: str, compute_dtype: str) -> str:
    """Digest of prompt, test rows and scoring; the prompt's digest covers base, template and labels."""
    scoring = {"method": "rank", "version": SCORING_VERSION, "dtype": compute_dtype.removeprefix("torch.")}
    return digest_of({"prompt": digest, "test": test_digest, "scoring": scoring})
