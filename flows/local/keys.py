"""The stack's secrets in PTP_HOME/stack.env, one NAME=value a line, readable by their owner alone.

The names are those that the clients of S3, Prefect and MLflow read, so a shell may source the file.
"""

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path

from ptpipeline.errors import StackError
from ptpipeline.private import write_private
from ptpipeline.settings import STACK_SECRETS, read_secrets

WEBHOOK_KEY = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"  # if it changes, MLflow cannot read its webhooks' secrets
USER = "ptp"


def load_keys(home: Path) -> dict[str, str]:
    """Return the stack's random secrets; missing ones are made.

    Prefect and MLflow share one password, so that one session of a browser opens both. Raises SettingsError if the file
    cannot be read.
    """
    existing, password = read_secrets(home), secrets.token_hex(20)
    new = {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "PREFECT_API_AUTH_STRING": f"{USER}:{password}",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
        WEBHOOK_KEY: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    keys = new | existing
    if keys != existing:
        _write(home, keys)
    return {name: keys[name] for name in new}


def renew_keys(home: Path) -> None:
    """Let `load_keys` make all secrets anew, but for what data are encrypted with."""
    kept = {name: value for name, value in read_secrets(home).items() if name == WEBHOOK_KEY}
    _write(home, kept)


def _write(home: Path, keys: Mapping[str, str]) -> None:
    write_private(home / STACK_SECRETS, "".join(f"{name}={value}\n" for name, value in keys.items()).encode())


def credential(keys: Mapping[str, str], name: str) -> str:
    """Return the `user:password` of a web server of the stack, prefect or mlflow; raise StackError if there is none."""
    try:
        if name == "prefect":
            return keys["PREFECT_API_AUTH_STRING"]
        return f"{keys['MLFLOW_TRACKING_USERNAME']}:{keys['MLFLOW_TRACKING_PASSWORD']}"
    except KeyError:
        raise StackError(f"{STACK_SECRETS} holds no credential for {name}: run `ptp up`, which makes one") from None
