"""A client of an MLflow server that tells nobody else anything, waits for no answer for long, and raises our errors."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError, Terminal
from ptpipeline.foreign import UNPACKED, escape_controls
from ptpipeline.settings import CREDENTIALS

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUEST_SECONDS = 10
ANSWER_SECONDS = 3 * REQUEST_SECONDS  # for the whole answer; the limit above is for each read
MAX_ANSWER = 32 * 2**20  # bytes; a page of versions has some 3 MB
_PIECE = 2**16
_FILES = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH")
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
    """A client of the MLflow server at `uri`, with a hard time-out per request; contacts nothing yet.

    Raises SettingsError for variables of MLflow by which its client would fail in the middle of each request.
    """
    os.environ.update(LIMITS)
    quiet_mlflow()
    given = [CREDENTIALS["mlflow"], ("MLFLOW_TRACKING_TOKEN",)]
    if "@" in uri or any(all(name in os.environ for name in names) for names in given):
        os.environ["NETRC"] = os.devnull  # else requests sends what ~/.netrc says, a `default` too, instead of these
    try:
        from mlflow import MlflowClient
    except ValueError as error:  # it reads some variables while it is imported
        raise SettingsError(f"MLFLOW_*: MLflow's client cannot start: {shorten(str(error))}") from None
    _check_environment()
    _bound_answers()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_environment() -> None:
    """Raise SettingsError, which shows no value, if a variable is set to what MLflow's client cannot use."""
    from mlflow import environment_variables

    for variable in vars(environment_variables).values():
        if hasattr(variable, "get_raw") and not isinstance(variable, type) and variable.is_set():
            try:
                variable.get()
            except ValueError:
                kind = getattr(variable.type, "__name__", "value")
                raise SettingsError(
                    f"{variable.name}: no {kind}, as MLflow's client needs; correct or unset it"
                ) from None
    for name in _FILES:
        if os.environ.get(name) and not os.path.exists(os.environ[name]):
            raise SettingsError(f"{name}: no such file; name the certificate that MLflow's client needs, or unset it")
    if environment_variables.MLFLOW_TRACKING_AWS_SIGV4.get() and find_spec("requests_auth_aws_sigv4") is None:
        raise SettingsError(
            "MLFLOW_TRACKING_AWS_SIGV4: to sign requests, MLflow's client needs a package that is not installed; run "
            "`pip install requests-auth-aws-sigv4`, or unset it"
        )


@cache
def _bound_answers() -> None:
    """Let MLflow's client, which reads whatever comes, read no more than an answer may have, and unfold none.

    It makes its sessions with the adapter that its module names. Files are streams, of which it reads a part at a time.
    """
    from mlflow.utils import request_utils
    from requests import Response
    from requests.exceptions import ConnectionError as NotAnswered
    from urllib3.util import Retry

    class Bounded(request_utils.TCPKeepAliveHTTPAdapter):  # type: ignore[misc]
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            self.max_retries = Retry(0, read=False)  # MLflow's own reads an error to its end before it tells of it

        def send(self, request: Any, stream: bool = False, *rest: Any, **options: Any) -> Response:
            if not stream:
                request.headers.update(UNPACKED)
            answer: Response = super().send(request, stream, *rest, **options)
            if not stream:
                answer._content = read(answer)
            return answer

    def read(answer: Response) -> bytes:
        body, ends = bytearray(), time.monotonic() + ANSWER_SECONDS
        try:
            while piece := answer.raw.read1(_PIECE, decode_content=False):
                body += piece
                if len(body) > MAX_ANSWER:
                    raise NotAnswered(f"it sends more than {MAX_ANSWER} bytes")
                if time.monotonic() > ends:
                    raise NotAnswered(f"its answer takes longer than {ANSWER_SECONDS} s")
        except BaseException:
            answer.close()
            raise
        return bytes(body)

    request_utils.TCPKeepAliveHTTPAdapter = Bounded


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
