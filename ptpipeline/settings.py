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
    """One frozen value, made once per process entry and passed on.

    home: where everything local lies. tasks: folder of task files. store: `s3://bucket[/prefix]` or
    `file:///folder`. ledger: SQLAlchemy URL. mlflow, prefect: server addresses, None where there is no server.
    dtype: compute type of the base model; `auto` is bfloat16 where the processor multiplies it natively.
    checkpoint_seconds: time between two checkpoints of a training.
    signing_key: PEM file of the private key that signs prompts; never the key itself, so that no copy of these settings
    holds a secret. trusted_keys: PEM file of public keys; where it is named, no prompt is read that none of them
    signed.
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
    """Settings from the environment, then the local stack's record, then folders under PTP_HOME.

    Raises SettingsError where a variable or the stack's record is malformed. Storage keys of the local stack are put
    into the process environment (AWS_*), where boto3 looks for them.
    """
    try:
        env = Settings()
        home = env.home.expanduser().resolve()
        recorded = _recorded(home)
        given = env.model_dump(exclude_unset=True)
        if "store" in given:
            recorded.pop("s3_endpoint", None)  # the stack's server does not hold somebody's own store
        settings = Settings.model_validate(
            {**recorded, **given, "home": home, "tasks": env.tasks.expanduser().resolve()}
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        found = (
            "" if name == "signing_key" else f"; found {first['input']!r}"
        )  # somebody may have put the key itself there
        raise SettingsError(f"PTP_{name.upper()}: {first['msg']}{found}") from None
    if "store" not in given and recorded:
        _export_keys(home / STACK_SECRETS)
    defaults = {
        "store": settings.store or f"file://{home / 'store'}",
        "ledger": settings.ledger or f"sqlite:///{home / 'ledger.db'}",
    }
    return settings.model_copy(update=defaults)


def _recorded(home: Path) -> dict[str, str]:
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
            os.environ[name] = value  # a user's own keys are for another store
