"""How much of what judges a prompt it was trained on: rows that stand in training, or nearly do."""

from collections.abc import Sequence

from ptpipeline.data.near import near_duplicates, normalised
from ptpipeline.data.rows import Row
from ptpipeline.errors import DataError


def leakage(test: Sequence[Row], train: Sequence[Row]) -> dict[str, float]:
    """`leakage.exact` and `leakage.near`: shares of the test rows whose text stands in train when normalised, and
    nearly.

    The near ones include the exact ones; `leakage.rows` counts them. DataError where there are no test rows.
    """
    if not test:
        raise DataError("leakage is a share of the test rows, and there are none; give the rows of a stored test split")
    known = {normalised(row.text) for row in train}
    exact = sum(normalised(row.text) in known for row in test)
    near = len(near_duplicates([row.text for row in test], [row.text for row in train]))
    return {"leakage.exact": exact / len(test), "leakage.near": near / len(test), "leakage.rows": float(near)}
