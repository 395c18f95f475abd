"""The Hugging Face hub: its client, and what its answers mean. `HF_ENDPOINT` and `HF_TOKEN` name server and login."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError, Terminal


def open_hub() -> Any:
    """Return the hub's client; it reads the address now, and not when its library is imported."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a data set without a card is no matter for a warning
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="ptpipeline")


@contextmanager
def asking_hub(name: str, kind: type[Terminal]) -> Iterator[None]:
    """Raise the client's errors as ours, about what `name` says: what is not there as one of that kind, a login that is
    refused as SettingsError, all else as ServiceUnavailable.
    """
    from huggingface_hub import errors as hub

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
