"""Puts a text into a task's template: named fields only, no attributes, indexes or formats."""

import string

from ptpipeline.errors import DataError
from ptpipeline.task.task import check_template


def render(template: str, text: str) -> str:
    """Return `template` with its one `{text}` replaced by `text`, taken literally: braces in the text stay.

    Raises DataError if the template has other fields or reaches into attributes.
    """
    try:
        check_template(template)
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}") from None
    return "".join(
        literal + (text if field is not None else "") for literal, field, _, _ in string.Formatter().parse(template)
    )
