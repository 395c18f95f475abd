"""What the verbs that read a file of rows share: an advice for a task file becomes one for their own options."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ptpipeline.errors import DataError

_ADVICE = (
    (r"set data\.source\.format: (\w+) and data\.source\.delimiter: (\".*?\")", r"give --format \1 --delimiter \2"),
    (r"set data\.source\.format: ", "give --format "),
    (r"set data\.source\.delimiter: ", "give --delimiter "),
    (r"name its columns in data\.source\.columns", "put their names in front"),
    (r"write data\.\S+: (\".*\")", r"rename the column \1 in the file"),
    (r", or write in the task labels: \{.*\}(?=, or set data\.checks)", ""),  # no version answers more labels
    (r"which data\.fields\.\w+ names", "which is a field of the template"),
)
_UNNAMED = ((r", which data\.text names", ""),)


@contextmanager
def naming_options(named: bool = True) -> Iterator[None]:
    """Raise a DataError about a file of rows with the options of the verb in the place of fields of a task file.

    named: whether a task file names the columns.
    """
    try:
        yield
    except DataError as error:
        said = str(error)
        for pattern, option in (*_ADVICE, *(() if named else _UNNAMED)):
            said = re.sub(pattern, option, said)
        raise type(error)(said) from None


def read_delimiter(given: str | None) -> str | None:
    """Return the character that an option names, which may be written as in a task file: `\\t`, `\\u0001`."""
    if given == "\\t":
        return "\t"
    code = re.fullmatch(r"\\u([0-9a-fA-F]{4})", given or "")
    return chr(int(code[1], 16)) if code else given
