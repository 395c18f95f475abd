"""The environment variables of the processes that talk to Prefect: flow runs, the worker, the client that deploys."""

import os
from pathlib import Path

from ptpipeline.settings import CREDENTIALS, bypass_proxies, resolve_path

POOL = "ptp"  # the work pool of all deployments
EVENT = "PTP_EVENT_"  # of the variables with the addresses and secrets of those who are told what happens

_PRIVATE = ("PREFECT_", "MLFLOW_", "_MLFLOW_", "AWS_", "PTP_")
_PASSED_ON = ("PTP_DTYPE", "PTP_CHECKPOINT_SECONDS", "PTP_NIGHT_OVERLAP", "PTP_LATE_HOURS", "PTP_NIGHT_HOURS")
_NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def client_environment(home: Path, api: str) -> dict[str, str]:
    """Return the whole environment of a process that talks to the Prefect server at `api` and runs or deploys flows.

    Flows find stores and servers through PTP_HOME, as every other entry point does. Only Prefect's own credentials come
    from the environment, since Prefect needs them before a flow starts.
    """
    tasks = resolve_path(Path(os.environ.get("PTP_TASKS", "tasks")))
    inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    inherited |= {
        name: os.path.abspath(os.path.expanduser(os.environ[name]))
        for name in ("PTP_SIGNING_KEY", "PTP_TRUSTED_KEYS")
        if os.environ.get(name)
    }
    inherited |= {name: os.environ[name] for name in CREDENTIALS["prefect"] if os.environ.get(name)}
    inherited |= {name: value for name, value in os.environ.items() if name == "PTP_EVENTS" or name.startswith(EVENT)}
    own = {
        "PTP_HOME": str(home),
        "PTP_TASKS": str(tasks),
        "PWD": str(Path.cwd()),
        "MPLCONFIGDIR": str(home / "matplotlib"),
    }
    return clean_environment({**inherited, **own, "PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": api})


def clean_environment(added: dict[str, str]) -> dict[str, str]:
    """Return `added` over the caller's environment without the settings of other stacks, servers and accounts.

    The process reaches this machine directly. Proxies that Prefect's client cannot use are left out, or it would not
    start.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    proxies = {name: value for name, value in inherited.items() if name.lower().endswith("_proxy")}
    for name, value in proxies.items():
        if name.lower() != "no_proxy" and "://" in value and not value.lower().startswith(("http://", "https://")):
            del inherited[name]
    environment = {**inherited, **_NO_TELEMETRY, "PYTHONUNBUFFERED": "1", **added}
    bypass_proxies(environment)
    return environment
