"""The Hugging Face hub: its client, and what its answers mean. `HF_ENDPOINT` and `HF_TOKEN` name server and login.

The client reads whatever a server sends: a list without end, a file that is longer than listed. What one block of
`asking_hub` reads has a bound in bytes and in time, whatever number of answers it comes in.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError, Terminal
from ptpipeline.foreign import UNPACKED
from ptpipeline.interpreter import check_interpreter
from ptpipeline.storage.bounds import MIB

MAX_TOLD = 64 * MIB  # of what the hub tells of a repository: 20,000 files take some
ANSWER = MIB // 4  # bytes that each answer counts for at least: a list may consist of empty pages
SECONDS, SLOWEST = 600, 100_000  # that a hub has to answer, and the bytes per second of a larger file


class _Allowance:
    """How many bytes the hub may still send, and until when."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most, self._left = name, most, most
        self._ends = time.monotonic() + SECONDS + most / SLOWEST

    def spend(self, count: int) -> None:
        """Count bytes that came; raise SettingsError if they are too many, ServiceUnavailable if they are too late."""
        self._left -= count
        if self._left < 0:
            raise SettingsError(
                f"{self._name}: the hub sends more than the {self._most} bytes that it may have; check HF_ENDPOINT"
            )
        if time.monotonic() > self._ends:
            raise ServiceUnavailable(f"{self._name}: the hub sends its answer too slowly; run again later")


_allowance: ContextVar[_Allowance | None] = ContextVar("allowance", default=None)


def check_variables() -> None:
    """Raise SettingsError, which shows no value, if a variable is none that the hub's client can use, or transformers,
    which imports it: reading a model would end with the same error, and the model is not damaged.
    """
    check_interpreter()
    try:
        import huggingface_hub.constants  # noqa: F401  it reads them
    except ValueError as error:
        names = [name for name, value in os.environ.items() if name.startswith("HF_") and repr(value) in str(error)]
        raise SettingsError(
            f"{names[0] if names else 'HF_*'}: no number, as the client of the hub needs; correct or unset it"
        ) from None


def open_hub() -> Any:
    """Return the hub's client; it reads the address now, and not when its library is imported.

    Raises SettingsError if a variable is none that it can use.
    """
    check_variables()
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a data set without a card is no matter for a warning
    _count_answers()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="ptpipeline")


def download(hub: Any, repository: str, path: str, size: int, name: str, kind: type[Terminal], **how: Any) -> Path:
    """Return a file of a repository, fetched by the client; raises what `asking_hub` raises, also if it is longer or
    shorter than the `size` that the hub lists.
    """
    with asking_hub(name, kind, MAX_TOLD + max(size, 0)):
        file = Path(hub.hf_hub_download(repository, path, **how))
        if (found := file.stat().st_size) != size:
            file.unlink()
            raise kind(f"{name}: the hub lists {path} with {size} bytes and sends {found}; check HF_ENDPOINT")
    return file


@cache
def _count_answers() -> None:
    """Let the clients that the library makes from now on count what they read, and ask for it unpacked."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def make() -> Any:
        client = default_client_factory()
        client.headers.update(UNPACKED)
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], _bound]}
        return client

    set_client_factory(make)


def _bound(answer: Any) -> None:
    """Count the answer's bytes while they are read, if somebody asks within `asking_hub`."""
    allowance = _allowance.get()
    if allowance is None:
        return
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise SettingsError(
            f"{answer.request.url.host}: packs its answers, though it is asked not to; check HF_ENDPOINT"
        )
    allowance.spend(ANSWER)
    answer.stream = _count(answer.stream, allowance)


def _count(inner: Any, allowance: _Allowance) -> Any:
    from httpx2 import SyncByteStream

    class Counted(SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for piece in inner:
                allowance.spend(len(piece))
                yield piece

        def close(self) -> None:
            inner.close()

    return Counted()


@contextmanager
def asking_hub(name: str, kind: type[Terminal], most: int = MAX_TOLD) -> Iterator[None]:
    """Raise the client's errors as ours, about what `name` says: what is not there as one of that kind, a login that is
    refused or a hub that sends more than `most` bytes as SettingsError, all else as ServiceUnavailable.
    """
    from huggingface_hub import errors as hub

    token = _allowance.set(_Allowance(name, most))
    try:
        yield
    except PtpError:
        raise
    except hub.HFValidationError:
        raise kind(f"{name}: no repository of the hub can be called so; correct `hub`") from None
    except hub.GatedRepoError:
        raise SettingsError(
            f"{name}: it is gated; accept its terms on the hub, and set HF_TOKEN to your token"
        ) from None
    except hub.RepositoryNotFoundError:
        raise kind(
            f"{name}: the hub has no such repository, or it is private; correct `hub`, or set HF_TOKEN"
        ) from None
    except hub.RevisionNotFoundError:
        raise kind(f"{name}: the repository has no such commit; correct `revision`") from None
    except hub.RemoteEntryNotFoundError:
        raise kind(f"{name}: the repository lacks a file that it lists; name another commit as `revision`") from None
    except hub.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            raise SettingsError(f"{name}: the hub refuses the login ({status}); check HF_TOKEN") from None
        raise ServiceUnavailable(f"{name}: the hub answered {status}; run again later") from None
    except Exception as error:  # noqa: BLE001 - the client raises many kinds; each means that it does not deliver
        raise ServiceUnavailable(f"{name}: the hub does not answer ({type(error).__name__}); run again later") from None
    finally:
        _allowance.reset(token)
