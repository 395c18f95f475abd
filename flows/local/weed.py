"""SeaweedFS's settings, its own alone: those of another SeaweedFS on the machine would move where its index lies.

It takes every setting from a variable WEED_*, and its files of settings from the folder that it runs in, from
~/.seaweedfs, or from /etc/seaweedfs: the first one of each name that it finds.
"""

from pathlib import Path

from flows.local.certificate import Certificate
from flows.server.environment import clean_environment

PREFIX = "WEED_"
_INDEX = '[leveldb2]\nenabled = true\ndir = "./filerldb2"\n'  # as it is without any file of settings
_FILES = {"filer": _INDEX} | dict.fromkeys(
    ("admin", "credential", "master", "notification", "replication", "security", "shell", "volume"), ""
)
_SPEAKERS = ("CLIENT", "MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER")
_HTTP = ("CLIENT", "MASTER", "VOLUME", "FILER", "ADMIN")


def make_environment(keys: dict[str, str], paths: Certificate) -> dict[str, str]:
    """Return the whole environment of SeaweedFS: its S3 port takes these keys, its inner ports that certificate."""
    inherited = {name: value for name, value in clean_environment({}).items() if not name.startswith(PREFIX)}
    # A limit of memory near what is in use (232 MiB, most of it never touched) would collect all the time.
    return {**inherited, **keys, **_mutual_tls(paths), "GOGC": "50"}


def write_files(folder: Path) -> None:
    """Put a file of each name into the folder that SeaweedFS runs in, so that it looks for none elsewhere."""
    for name, text in _FILES.items():
        (folder / f"{name}.toml").write_text(text)


def _mutual_tls(paths: Certificate) -> dict[str, str]:
    """Return the settings by which SeaweedFS's inner ports, HTTP and gRPC, demand the stack's certificate."""
    settings = {"WEED_GRPC_CA": str(paths.certificate), "WEED_HTTPS_CLIENT_ENABLED": "true"}
    sections = [f"GRPC_{name}" for name in _SPEAKERS] + [f"HTTPS_{name}" for name in _HTTP]
    for section in sections:
        settings |= {f"WEED_{section}_CERT": str(paths.certificate), f"WEED_{section}_KEY": str(paths.key)}
    return settings | {f"WEED_HTTPS_{name}_CA": str(paths.certificate) for name in _HTTP}
