"""PTP_* environment: addresses, credentials, home folder. The environment wins over `.ptp/stack.json`.

`ptp up` writes the addresses of the local stack to `PTP_HOME/stack.json` and its generated keys to `PTP_HOME/stack.env`
(mode 0600). Without either, everything lives in plain folders and files under PTP_HOME, which its owner alone can read.
"""

import json
import logging
import os
import re
from collections.abc import MutableMapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ptpipeline.errors import NotFound, SettingsError
from ptpipeline.listeners import find_listeners, is_running, leave_strangers
from ptpipeline.private import make_private, open_own

STACK_FILE = "stack.json"
STACK_SECRETS = "stack.env"
# The keys of the stack's servers, by the setting that points at each server.
CREDENTIALS = {
    "store": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "prefect": ("PREFECT_API_AUTH_STRING",),
    "mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}
# A key of somebody else's account beside the stack's own would be sent along: so all that goes with a set goes with it.
# A workspace is one of another MLflow.
_WITH_CREDENTIALS = {"store": ("AWS_",), "mlflow": ("MLFLOW_TRACKING_", "MLFLOW_WORKSPACE")}
# The setting with the address of each of these servers, and the server's name in the stack's record.
_SERVERS = {"store": ("s3_endpoint", "storage"), "prefect": ("prefect", "prefect"), "mlflow": ("mlflow", "mlflow")}
# How the names of all variables begin that may hold a login at these servers, or at the hub.
OWN_PREFIXES = ("AWS_", "PTP_", "PREFECT_", "MLFLOW_", "_MLFLOW_", "HF_")
NO_AWS_FILES = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}

_HALF = re.compile("[\ud800-\udfff]")  # what is not UTF-8 in the environment comes as such

LOOPBACK = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger("ptpipeline.settings")


def _absolute(path: Path) -> Path:
    if "-----" in str(path):
        raise ValueError("expected the path of a PEM file, not the key itself")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError("no user has that name, so there is no home directory: write the whole path")
    return Path(os.path.abspath(expanded))


ComputeType = Literal["float32", "bfloat16"]
COMPUTE_TYPES: tuple[str, ...] = get_args(ComputeType)

KeyFile = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """All settings; made once when a process starts, and passed on.

    home: folder of all local files. tasks: folder of task files. store: `s3://bucket[/prefix]` or
    `file:///folder`. ledger: SQLAlchemy URL. mlflow, prefect: server addresses, None if there is no server.
    dtype: compute type of the base model; `auto` is the faster of the two on this machine, by a measurement.
    checkpoint_seconds: time between two checkpoints of a training.
    night_overlap: what a night does while another one runs. late_hours: how late a scheduled night may begin.
    events: names of the targets that are told what happens, whose addresses are in variables of their own.
    night_hours: a night that runs longer raises an alarm.
    signing_key: PEM file of the private key that signs what is stored; never the key itself, so that no copy of these
    settings holds a secret. trusted_keys: PEM file of public keys; if it is set, only what one of them signed is read.
    """

    model_config = SettingsConfigDict(env_prefix="PTP_", env_ignore_empty=True, frozen=True, extra="ignore")

    home: Path = Path(".ptp")
    tasks: Path = Path("tasks")
    store: str = ""
    ledger: str = ""
    mlflow: str | None = None
    prefect: str | None = None
    s3_endpoint: str | None = None
    dtype: Literal["auto", ComputeType] = "auto"
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 20.0
    night_overlap: Literal["wait", "skip"] = "wait"
    late_hours: Annotated[float, Field(gt=0)] = 12.0
    signing_key: Annotated[KeyFile | None, Field(repr=False)] = None
    trusted_keys: KeyFile | None = None
    events: str = ""
    night_hours: Annotated[float, Field(gt=0)] = 12.0


class _Recorded(NamedTuple):
    """What the record of a local stack says: settings, and the process of each server by its name."""

    settings: dict[str, str]
    pids: dict[str, int]


def load_settings(*, starting: bool = False) -> Settings:
    """Return settings from the environment, then from the local stack's record, then folders under PTP_HOME.

    Puts the keys of the local stack's servers into the process environment, where the clients of S3, Prefect and MLflow
    read them, in place of all that is there for these clients; those of a server that the environment names otherwise
    stay as they are. A server that is down, or whose port another user's program has, gets no password. Lets no client
    reach this machine through a proxy. Takes the rights of other users on PTP_HOME away. Raises SettingsError if a
    variable or the stack's record is malformed, or cannot be read.
    """
    bypass_proxies(os.environ)
    try:
        env = Settings()
        home, tasks = resolve_path(env.home), resolve_path(env.tasks)
        if os.path.isdir(home):
            make_private(home)
        recorded, pids = _read_recorded(home, starting)
        given = env.model_dump(exclude_unset=True)
        if "store" in given:
            recorded.pop("s3_endpoint", None)  # another store is not on the stack's server
        settings = Settings.model_validate({**recorded, **given, "home": home, "tasks": tasks})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        value = "" if name in ("signing_key", "trusted_keys") else f"; found {first['input']!r}"  # or it shows a key
        raise SettingsError(f"PTP_{name.upper()}: {first['msg'].removeprefix('Value error, ')}{value}") from None
    if settings.prefect and "@" in settings.prefect:  # it stands in messages, logs and tables
        raise SettingsError(
            "PTP_PREFECT: the address holds a user name or password, and what is shown of it would hold them too; give "
            "them in PREFECT_API_AUTH_STRING as user:password, and remove what is before the @"
        )
    for name in ("mlflow", "prefect"):
        address = getattr(settings, name)
        if address is not None and not _is_address(address):  # not shown: it may hold a password
            raise SettingsError(f"PTP_{name.upper()}: no address of a server; expected one such as http://host:5000")
    for name, value in given.items():
        if not str(value).isascii() and _HALF.search(str(value)):
            raise SettingsError(
                f"PTP_{name.upper()}: {value} is not UTF-8, so no server can be told it; rename what it names"
            )
    if recorded:
        replaced = {name for name in given if name == "store" or given[name] != recorded.get(name)}
        _export_keys(home, replaced, _Recorded(recorded, pids))
    own = {name: default for name, default in without_stack(home).items() if not getattr(settings, name)}
    return settings.model_copy(update=own)


def resolve_path(path: Path) -> Path:
    """Return the absolute path, without links.

    Raises SettingsError if it is relative to a folder that is gone, or begins with the `~name` of nobody. A loop of
    links stays in it: whoever opens it is told, while Path's own method raises RuntimeError.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise SettingsError(f"{path}: no user has that name, so there is no home folder: write the whole path")
    try:
        return Path(os.path.realpath(expanded))
    except FileNotFoundError:
        raise SettingsError("the current folder was deleted: go to the project's folder and try again") from None


def check_place(settings: Settings, used: Literal["store", "ledger"]) -> None:
    """Raise NotFound if what is used would lie in a home folder that holds nothing, and there are no task files either.

    So a person who stands in another folder than the project's is told so, instead of that nothing is registered.
    """
    if getattr(settings, used) != without_stack(settings.home)[used] or os.path.isdir(settings.tasks):
        return
    try:
        if os.listdir(settings.home):
            return
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        return  # it is there; whoever reads it says what is wrong
    raise NotFound(
        f"no project or stack is here: neither in the home folder {settings.home} (PTP_HOME) nor in the folder of task "
        f"files {settings.tasks} (PTP_TASKS); start in the project's folder, or set PTP_HOME to its home folder, "
        "such as PTP_HOME=/path/to/project/.ptp"
    )


def without_stack(home: Path) -> dict[str, str]:
    """Return the settings of store and ledger that hold where neither the environment nor a stack names any."""
    return {"store": f"file://{home / 'store'}", "ledger": f"sqlite:///{home / 'ledger.db'}"}


def bypass_proxies(environment: MutableMapping[str, str]) -> None:
    """Exempt this machine's own addresses from the proxies that the environment names; other addresses keep theirs."""
    named = {name.lower() for name, value in environment.items() if name.lower().endswith("_proxy") and value}
    if not named - {"no_proxy"}:
        return
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    exempt = [host.strip() for host in given.split(",") if host.strip()]
    exempt += [host for host in LOOPBACK if host not in exempt and "*" not in exempt]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(exempt)


def explain_environment(error: Exception, server: str) -> SettingsError:
    """Return the error of an environment by which no client of a server can be made: its proxies or its certificates.

    server: whose client it is, in words.
    """
    if isinstance(error, OSError):
        return SettingsError(
            f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read ({error.strerror or error}); "
            "name a file or folder of them in PEM, or unset the variable"
        )
    return SettingsError(
        f"the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used ({error}); name one as "
        f"http://host:port, or exempt {server}'s host by NO_PROXY"
    )


def is_loopback(address: str) -> bool:
    """Return whether a server's address is one of this machine's own."""
    try:
        return is_own_host(urlsplit(address).hostname or "")
    except ValueError:
        return False


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of its port, or of an IPv6 address
        return False


def is_own_host(host: str) -> bool:
    """Return whether a host, `localhost` or an IP address without brackets, is this machine itself."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def read_secrets(home: Path) -> dict[str, str]:
    """Return the stack's secrets by name; none if there is no stack. Raises SettingsError if they cannot be read."""
    path = home / STACK_SECRETS
    try:
        lines = _read_text(path).splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _read_recorded(home: Path, starting: bool) -> _Recorded:
    path = home / STACK_FILE
    try:
        found = json.loads(_read_text(path))
        written = str(found.get("home", home))
        recorded = {name: str(value) for name, value in found["settings"].items()}
        processes = found.get("processes", {}).items()
        pids = {name: int(process["pid"]) for name, process in processes}
    except FileNotFoundError:
        return _Recorded({}, {})
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{path}: not a stack record ({type(error).__name__}: {error}); remove it and run `ptp up`"
        ) from None
    if written == str(home):
        return _Recorded(recorded, pids)
    if starting:
        return _Recorded({}, {})
    raise SettingsError(
        f"{path}: it was copied or moved here with its folder, and names servers and ledger of {written}: `ptp up` "
        "starts servers of this folder's own"
    )


def _read_text(path: Path) -> str:
    with open_own(path) as file:
        return file.read().decode()


def _unreadable(path: Path, error: Exception) -> SettingsError:
    reason = getattr(error, "strerror", None) or "not UTF-8"
    return SettingsError(
        f"{path}: cannot be read ({reason}); it belongs to the stack of whoever ran `ptp up` there: set PTP_HOME to a "
        "folder of your own"
    )


def _export_keys(home: Path, replaced: set[str], recorded: _Recorded) -> None:
    """Put the keys of the stack's servers into the environment, but not of those that other settings replace, and of
    none whose port may be another user's.
    """
    keys = read_secrets(home)
    for setting, names in CREDENTIALS.items():
        if setting in replaced or not all(name in keys for name in names):
            continue  # the user's are for other servers; half a set opens nothing
        beside = _WITH_CREDENTIALS.get(setting)
        for name in [name for name in os.environ if name in names or (beside and name.startswith(beside))]:
            del os.environ[name]
        if _is_own_server(home, setting, recorded):
            os.environ.update({name: keys[name] for name in names} | (NO_AWS_FILES if setting == "store" else {}))


def _is_own_server(home: Path, setting: str, recorded: _Recorded) -> bool:
    """Return whether the stack's owner has the port of that server, or its process is about to take it.

    While the server is down, any user may listen there, and would be sent the password that opens it later. Requests to
    the storage are signed and show no secret.
    """
    address, server = _SERVERS[setting]
    try:
        port = urlsplit(recorded.settings.get(address, "")).port
    except ValueError:  # whoever uses the address says so
        return False
    users = find_listeners(port) if port else set()
    if others := leave_strangers(users, (home / STACK_SECRETS).stat().st_uid):
        log.warning(
            "port %s of the stack's %s is taken by a program of user %s, which gets no key: `ptp up` takes another",
            port,
            server,
            min(others),
        )
        return False
    return setting == "store" or bool(users) or (server in recorded.pids and is_running(recorded.pids[server]))
