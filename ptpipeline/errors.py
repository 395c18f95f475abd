"""Every error that ptpipeline raises on purpose; the class says whether a retry can help.

PtpError
|-- Transient                 the world may be different in a minute: retry with backoff
|   |-- ServiceUnavailable    MLflow, S3, Prefect or the database did not answer
|   |-- LeaseHeld             another process is writing the same projection
|   |-- RankLost              another process of a data parallel training ended
|   |-- Overloaded            more requests wait for an answer than the bound allows
|   `-- TimedOut              no answer came in the time that the client gave
`-- Terminal                  the same input fails again: a person has to change something
    |-- SettingsError         a PTP_* variable or .ptp/stack.json is wrong
    |-- TaskFileError         a task file (or base_models.yaml) is wrong; names file, line, field
    |-- DataError             rows, columns or labels are wrong; a blocking data check
    |-- BaseModelError        a base model cannot be obtained, or is not the artifact's
    |-- ContextError          prompt + text do not fit the model's context
    |-- ArtifactError         stored bytes are truncated, altered or out of bounds
    |-- TrainingError         one gang member could not be trained: its own input, loss or gradient
    |-- Overtaken             this process stood still, and another one took its work over
    |-- NotFound              no such task, version, alias or object
    |-- PreconditionFailed    a conditional put lost; carries the key
    |-- PromotionConflict     somebody else moved the alias first; names both sides
    |-- PromotionRefused      the version has no valid verdict, or is altered or foreign
    `-- StackError            the local stack cannot start or stop
"""

import traceback
from pathlib import Path


class PtpError(Exception):
    """Base of all; the message is one sentence that names what, where, what was expected, and the fix."""


class Transient(PtpError):
    """The same call may succeed later: retried with backoff."""


class ServiceUnavailable(Transient):
    """A server did not answer, or answered 5xx."""


class LeaseHeld(Transient):
    """Another process holds the lease of this (task, alias)."""


class RankLost(Transient):
    """Another process of a data parallel training ended, or differs from this one."""


class Overloaded(Transient):
    """More requests wait than the bound allows; `retry_after` says in how many seconds another try is worth it."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TimedOut(Transient):
    """No answer came in the time that the client gave."""


class Terminal(PtpError):
    """The same call fails again until somebody changes something: never retried."""


class SettingsError(Terminal):
    """A setting is missing or malformed."""


class TaskFileError(Terminal):
    """A task file is wrong; the message names file, line, field, value and what is allowed."""


class DataError(Terminal):
    """The data cannot be used: missing column, unknown label, a blocking check."""


class BaseModelError(Terminal):
    """The base model cannot be loaded, or its fingerprint is not the one required."""


class ContextError(Terminal):
    """Prompt, text and label together exceed the base model's context."""


class ArtifactError(Terminal):
    """A stored prompt is truncated, altered, or outside the bounds its manifest states."""


class TrainingError(Terminal):
    """One member of a gang failed: its text does not fit, or its loss or gradient was not finite."""


class Overtaken(Terminal):
    """Another process took over the tasks that this one works on: it must write nothing more."""


class NotFound(Terminal):
    """The named task, version, alias or object does not exist."""


class PreconditionFailed(Terminal):
    """A conditional put failed: the object exists already, or is no longer the one that was read."""


class PromotionConflict(Terminal):
    """The alias moved since it was read; the message names the expected and the actual head."""


class PromotionRefused(Terminal):
    """The version may not take the alias: no verdict, a failed or outdated one, or altered bytes."""


class StackError(Terminal):
    """The local stack cannot be started or stopped as asked."""


OWN_PACKAGES = ("ptpipeline", "registry", "flows")  # what is raised in others is a library's


def place_of(error: BaseException) -> str:
    """Return where an unexpected error was raised, without its message, which may hold a row's text."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}" for frame in reversed(frames))
    return f"unexpected {type(error).__name__} at {where}"


def is_panic(error: BaseException) -> bool:
    """Whether a library that is written in Rust panicked, which raises no Exception."""
    return type(error).__name__ == "PanicException"
