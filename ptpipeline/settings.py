"""PTP_* environment: addresses, credentials, home folder. The environment wins over `.ptp/stack.json`.

`ptp up` writes the addresses of the local stack to `PTP_HOME/stack.json` and its generated storage keys to
`PTP_HOME/stack.env` (mode 0600). Without either, everything lives in plain folders and files under PTP_HOME.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ptpipeline.errors import SettingsError

STACK_FILE = "stack.json"
STACK_SECRETS = "stack.env"


def _absolute(path: Path) -> Path:
    if "-----" in str(path):
        raise ValueError("expected the path of a PEM file, not the key itself")
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise ValueError(str(error)) from None


KeyFile = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """All settings; made once when a process starts, and passed on.

    home: folder of all local files. tasks: folder of task files. store: `s3://bucket[/prefix]` or
    `file:///folder`. ledger: SQLAlchemy URL. mlflow, prefect: server addresses, None if there is no server.
    dtype: compute type of the base model; `auto` is bfloat16 if the processor multiplies it natively.
    checkpoint_seconds: time between two checkpoints of a training.
    signing_key: PEM file of the private key that signs prompts; never the key itself, so that no copy of these settings
    holds a secret. trusted_keys: PEM file of public keys; if it is set, only prompts that one of them signed are read.
    """

    model_config = SettingsConfigDict(env_prefix="PTP_", env_ignore_empty=True, frozen=True, extra="ignore")

    home: Path = Path(".ptp")
    tasks: Path = Path("tasks")
    store: str = ""
    ledger: str = ""
    mlflow: str | None = None
    prefect: str | None = None
    s3_endpoint: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    signing_key: Annotated[KeyFile | None, Field(repr=False)] = None
    trusted_keys: KeyFile | None = None


def load_settings() -> Settings:
    """Return settings from the environment, then from the local stack's record, then folders under PTP_HOME.

    Puts the storage keys of the local stack into the process environment (AWS_*), where boto3 reads them. Raises
    SettingsError if a variable or the stack's record is malformed.
    """
    try:
        env = Settings()
        home = env.home.expanduser().resolve()
        recorded = _read_recorded(home)
        given = env.model_dump(exclude_unset=True)
        if "store" in given:
            recorded.pop("s3_endpoint", None)  # another store is not on the stack's server
        settings = Settings.model_validate(
            {**recorded, **given, "home": home, "tasks": env.tasks.expanduser().resolve()}
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        value = "" if name == "signing_key" else f"; found {first['input']!r}"  # it may be the key itself
        raise SettingsError(f"PTP_{name.upper()}: {first['msg']}{value}") from None
    if "store" not in given and recorded:
        _export_keys(home / STACK_SECRETS)
    defaults = {
        "store": settings.store or f"file://{home / 'store'}",
        "ledger": settings.ledger or f"sqlite:///{home / 'ledger.db'}",
    }
    return settings.model_copy(update=defaults)


def _read_recorded(home: Path) -> dict[str, str]:
    path = home / STACK_FILE
    try:
        recorded = json.loads(path.read_text())["settings"].items()
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{path}: not a stack record ({type(error).__name__}: {error}); remove it and run `ptp up`"
        ) from None
    return {name: str(value) for name, value in recorded}


def _export_keys(path: Path) -> None:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        name, _, value = line.partition("=")
        if name.startswith("AWS_"):
            os.environ[name] = value  # they replace the user's keys, which are for another store
