"""MLflow's failures as ours: what may be repeated, what is a matter of settings, and no password in any sentence."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import REQUEST_LIMIT_EXCEEDED, RESOURCE_DOES_NOT_EXIST
from requests import HTTPError, Response
from requests.exceptions import ConnectionError as Refused

from ptpipeline.errors import ServiceUnavailable, SettingsError, Terminal
from registry.mlflow.client import translated_errors

URI = "http://me:hidden@mlflow:5000"


def answered(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(f"{status} for {URI}/api", response=response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered(500), ServiceUnavailable),
        (answered(499), Terminal),
        (answered(429), ServiceUnavailable),
        (answered(401), SettingsError),
        (answered(403), SettingsError),
        (answered(404), Terminal),
        (Refused(f"no connection to {URI}"), ServiceUnavailable),
        (Refused(), ServiceUnavailable),
        (MlflowException(f"{URI} is full", REQUEST_LIMIT_EXCEEDED), ServiceUnavailable),
        (MlflowException(f"{URI} does not know it", RESOURCE_DOES_NOT_EXIST), Terminal),
    ],
)
def test_a_failure_says_whether_a_repeat_may_help_and_no_password(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as raised, translated_errors(URI):
        raise error
    assert type(raised.value) is kind
    assert "MLflow at http://mlflow:5000" in str(raised.value)
    assert "hidden" not in str(raised.value)
