"""What people set in their environment for every Python program, and ptpipeline or a library of it cannot work with."""

import os
import re
import sys
import traceback

from ptpipeline.errors import OWN_PACKAGES, SettingsError

_NO_MEMORY = "the system gives this process no more memory: end other work, or raise its limit (`ulimit -v`, `-u`)"
_SAID = (  # as the system's loader, its functions, torch and Python say it
    "failed to map segment from shared object",
    "annot allocate memory",
    "can't allocate memory",
    "can't start new thread",
)
_SHORTEST = 4  # letters of a variable's name by which a sentence may mean it


def check_interpreter() -> None:
    """Raise SettingsError if Python leaves docstrings out: transformers reads them, and the help consists of them."""
    if sys.flags.optimize > 1:
        raise SettingsError(
            "PYTHONOPTIMIZE: from level 2 on (or -OO) Python leaves out docstrings, which transformers and the help "
            "are made from; unset it, or set it to 1"
        )


def explain(error: Exception) -> SettingsError | None:
    """Return what to do about an error that nobody expected, and that surroundings caused: a library that cannot be
    imported, or memory that is used up; None if it is no such error.
    """
    return explain_import(error) or (SettingsError(_NO_MEMORY) if _lacks_memory(error) else None)


def explain_import(error: Exception) -> SettingsError | None:
    """Return what to do about a library that raised this while it was imported, because of a variable that its words
    name or quote, or for want of memory; None if it is no such error. No value is shown: it may be a secret.
    """
    library = _find_imported(error)
    if library is None:
        return None
    if _lacks_memory(error):
        return SettingsError(f"{library} cannot be imported: {_NO_MEMORY}")
    said = str(error)
    named = [name for name in os.environ if len(name) >= _SHORTEST and re.search(rf"\b{re.escape(name)}\b", said)]
    named = named or [name for name, value in os.environ.items() if value and repr(value) in said]
    if not named:
        return None
    why = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno is not None else ""
    return SettingsError(
        f"{' or '.join(named)}: {library} refuses its value{why} and cannot be imported; correct or unset it"
    )


def _find_imported(error: Exception) -> str | None:
    """Return the library that was being imported when the error was raised."""
    library = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in OWN_PACKAGES:
            library = None
        elif library is None and frame.f_code.co_name == "<module>":
            library = package
    return library


def _lacks_memory(error: Exception) -> bool:
    """Return whether the system gave this process no more memory, or no more threads."""
    return isinstance(error, MemoryError) or (
        isinstance(error, ImportError | OSError | RuntimeError) and any(words in str(error) for words in _SAID)
    )
