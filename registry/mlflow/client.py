"""A client of an MLflow server that tells nobody else anything, waits for no answer for long, and raises our errors."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError, Terminal
from ptpipeline.foreign import escape_controls
from ptpipeline.settings import CREDENTIALS

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUEST_SECONDS = 10
LIMITS = {  # the leases depend on them, so the environment does not override them
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a repeat inside the client could write after our lease ended
}
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the command that prints records
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def quiet_mlflow() -> None:
    """Let MLflow, which is imported next, tell nobody that it is used, and print nothing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(uri: str) -> "MlflowClient":
    """A client of the MLflow server at `uri`, with a hard time-out per request; contacts nothing yet."""
    os.environ.update(LIMITS)
    quiet_mlflow()
    if "@" in uri or all(name in os.environ for name in CREDENTIALS["mlflow"]):
        os.environ["NETRC"] = os.devnull  # else requests sends what ~/.netrc says, a `default` too, instead of these
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Raise MLflow's failures as ours: ServiceUnavailable if a repeat may help, else SettingsError or Terminal."""
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except ParseError as error:  # another service answers at this address
        raise _translate(uri, 502, error) from error
    except MlflowException as error:
        raise _translate(uri, error.get_http_status_code(), error) from error
    except RequestException as error:
        raise _translate(uri, error.response.status_code if error.response is not None else 503, error) from error


def _translate(uri: str, status: int, error: Exception) -> PtpError:
    words = str(error).splitlines() or [type(error).__name__]
    reason, uri = shorten(without_password(words[0])), without_password(uri)
    if status >= 500 or status == 429:
        return ServiceUnavailable(f"MLflow at {uri} does not answer: {reason}; is it up? `ptp status`")
    if status in (401, 403):
        return SettingsError(
            f"MLflow at {uri} refuses this client ({reason}); check PTP_MLFLOW, MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, and the server's --allowed-hosts"
        )
    return Terminal(f"MLflow at {uri} refuses the request: {reason}")


def log_files(client: "MlflowClient", model: str, folder: str) -> None:
    """Add the files of the folder to the logged model's, in place of those of the same names.

    Raises Terminal if MLflow does not take files itself, and the place that it names takes none from this machine.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        client.log_model_artifacts(model, folder)
    except (MlflowException, RequestException):
        raise
    except Exception as error:  # each kind of place has a package, whose errors are its own
        place = without_password(str(client.get_logged_model(model).artifact_location))
        raise Terminal(
            f"MLflow lets its clients write files to {place}, which this machine cannot "
            f"({type(error).__name__}: {shorten(str(error))}); start MLflow with --serve-artifacts or give this "
            "machine the right; an experiment keeps its place, so rename an older one in MLflow, and another is made"
        ) from error


def shorten(text: str) -> str:
    """Return the text without the middle of what is long: HTTP clients tell the cause last. A server's control
    characters are written out.
    """
    text = escape_controls(text)
    return text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"


def without_password(text: str) -> str:
    """Return the text with its addresses as people may see them: `http://user:password@host` as `http://host`."""
    return re.sub(r"//[^/@\s]*@", "//", text)
