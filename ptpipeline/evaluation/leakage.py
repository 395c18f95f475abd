"""How many of a prompt's test rows also stand in its training rows, exactly or nearly."""

from collections.abc import Sequence

from ptpipeline.data.near import find_near_duplicates
from ptpipeline.data.rows import Row, normalise_fields
from ptpipeline.errors import DataError


def measure_leakage(test: Sequence[Row], train: Sequence[Row], fields: Sequence[str] = ()) -> dict[str, float]:
    """Return `leakage.exact` and `leakage.near`: the shares of test rows whose normalised text equals one of train, or
    nearly does.

    fields: a test row also counts as near if one of these fields nearly stands in a training row;
    `leakage.field.NAME` is the share by each. The near ones include the exact ones; `leakage.rows` is their number.
    Raises DataError if there are no test rows.
    """
    if not test:
        raise DataError("leakage is a share of the test rows, and there are none; give the rows of a stored test split")
    known = {normalise_fields(row.fields) for row in train}
    exact = sum(normalise_fields(row.fields) in known for row in test)
    near = set(find_near_duplicates([row.text for row in test], [row.text for row in train]))
    by_field = {
        name: find_near_duplicates(
            [row.fields.get(name, "") for row in test], [row.fields[name] for row in train if name in row.fields]
        )
        for name in fields
    }
    near = near.union(*by_field.values())
    shares = {f"leakage.field.{name}": len(places) / len(test) for name, places in by_field.items()}
    return {
        "leakage.exact": exact / len(test),
        "leakage.near": len(near) / len(test),
        "leakage.rows": float(len(near)),
        **shares,
    }
