"""What people set in their environment for every Python program, and ptpipeline or a library of it cannot work with."""

import os
import re
import sys
import traceback

from ptpipeline.errors import SettingsError

_OWN = ("ptpipeline", "registry", "flows")
_SHORTEST = 4  # letters of a variable's name by which a sentence may mean it


def check_interpreter() -> None:
    """Raise SettingsError if Python leaves docstrings out: transformers reads them, and the help consists of them."""
    if sys.flags.optimize > 1:
        raise SettingsError(
            "PYTHONOPTIMIZE: from level 2 on (or -OO) Python leaves out docstrings, which transformers and the help "
            "are made from; unset it, or set it to 1"
        )


def explain_import(error: Exception) -> SettingsError | None:
    """Return what to do about a library that raised this while it was imported, because of a variable that its words
    name or quote; None if it is no such error. No value is shown: it may be a secret.
    """
    library = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in _OWN:
            library = None
        elif library is None and frame.f_code.co_name == "<module>":
            library = package
    said = str(error)
    named = [name for name in os.environ if len(name) >= _SHORTEST and re.search(rf"\b{re.escape(name)}\b", said)]
    quoted = [name for name, value in os.environ.items() if value and repr(value) in said]
    if library is None or not (named or quoted):
        return None
    return SettingsError(
        f"{' or '.join(named or quoted)}: {library} refuses its value and cannot be imported; correct or unset it"
    )
