"""What an S3 server means by an answer that is no success, wherever it is met: in the store, a source, or a bucket."""

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any, Literal, NamedTuple

from ptpipeline.errors import OWN_PACKAGES, ServiceUnavailable, SettingsError
from ptpipeline.foreign import shorten

_REFUSED_RIGHT = ("AccessDenied", "AllAccessDisabled", "403")  # a HEAD has no body to say more

Meaning = Literal[
    "no bucket", "absent", "unchanged", "changed", "withheld", "right", "clock", "login", "region", "lacks", "other"
]

_MEANINGS: dict[str, Meaning] = {
    "NoSuchBucket": "no bucket",
    "PreconditionFailed": "changed",
    "InvalidObjectState": "withheld",  # it is in an archive
    "ExpiredToken": "login",
    "InvalidToken": "login",
    "RequestTimeTooSkewed": "clock",
    "PermanentRedirect": "region",
    "AuthorizationHeaderMalformed": "region",
    "IllegalLocationConstraintException": "region",
}
_MEANINGS_OF_STATUS: dict[int, Meaning] = {
    301: "region",
    304: "unchanged",
    400: "withheld",  # of one object: somebody encrypted it by a key of their own
    404: "absent",
    409: "changed",
    412: "changed",
    501: "lacks",
}


class Strange(ValueError):
    """An answer that no S3 server gives."""


# What botocore raises for answers that nobody expected; raised by our own code, it is a defect of ours.
MALFORMED = (RecursionError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError)
_THEIRS = ("botocore", "urllib3")


@contextmanager
def reading_fields() -> Iterator[None]:
    """Raise Strange if an answer lacks a field or has an odd one. Nothing but the fields may be read within."""
    try:
        yield
    except MALFORMED as error:
        raise Strange("a field that is missing or odd") from error


class Fault(NamedTuple):
    """What an S3 server means by an answer that is no success, with its status and its own word.

    `withheld` means something only of the read of an object.
    """

    meaning: Meaning
    status: int
    code: str


def read_fault(error: Any) -> Fault:
    """Return what botocore's ClientError means: `other` is the server's own trouble, or nothing that is known here."""
    status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], str(error.response["Error"].get("Code", ""))
    return Fault(_find_meaning(status, code), status, shorten(code, 40)[1:-1])


def explain_fault(fault: Fault, where: str, doing: str, keys: str) -> SettingsError | ServiceUnavailable | None:
    """Return the error for a fault that is the same whatever was asked for; None if it concerns what was asked for.

    where: the server or store, in a person's words; doing: what was asked for, such as `list a`; keys: the settings
    that hold the credentials.
    """
    meaning, status, code = fault
    if meaning == "clock":
        return SettingsError(f"{where}: this machine's clock differs from the server's ({code}); correct the clock")
    if meaning == "login":
        return SettingsError(f"{where} refuses the credentials ({status} {code}); check {keys}")
    if meaning == "region":
        return SettingsError(
            f"{where}: the bucket is in another region ({status} {code}); set AWS_DEFAULT_REGION to it"
        )
    if meaning == "lacks":
        return SettingsError(f"{where} cannot {doing} ({status} {code}), which other S3 servers can; use one of them")
    if status >= 500 or status == 429:
        return ServiceUnavailable(f"{where} answered {status} {code} to {doing}; try again later")
    return None


def explain_failure(error: Any, where: str, check: str, advice: str) -> SettingsError | ServiceUnavailable:
    """Return the error for a request that ended without an answer that could be read; raise a defect of ours as it is.

    where: the server or store, in a person's words; check: the settings that lead to another server; advice: what to do
    about one that does not answer.
    """
    if is_ours(error):
        raise error
    if _is_strange(error):
        return SettingsError(f"{where} does not answer as S3 does; check {check}")
    return ServiceUnavailable(f"{where} does not answer ({type(error).__name__}); {advice}")


def _is_strange(error: Any) -> bool:
    """Whether the server does not answer as S3 does: an answer lacks a part or has an odd one, or botocore gave up
    following its redirections in a circle, which it may tell as an error of the HTTP client.
    """
    within = getattr(error, "kwargs", {}).get("error")
    if isinstance(error, Strange) or isinstance(within, RecursionError):
        return True
    return isinstance(error, MALFORMED) and not is_ours(error)


def is_ours(error: BaseException) -> bool:
    """Whether the error is a defect of our own: it comes from our code, and not from botocore, which that called."""
    if isinstance(error, Strange) or not isinstance(error, MALFORMED):
        return False
    frames = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    return next((name in OWN_PACKAGES for name in reversed(frames) if name in OWN_PACKAGES + _THEIRS), True)


def _find_meaning(status: int, code: str) -> Meaning:
    if code in _MEANINGS:
        return _MEANINGS[code]
    if status in (401, 403):
        return "right" if code in _REFUSED_RIGHT else "login"
    return _MEANINGS_OF_STATUS.get(status, "other")
