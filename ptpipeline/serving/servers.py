"""What each server says that it holds, at `servers/<name>.json` in the object store: so that nobody deletes it
meanwhile.
"""

import re
from collections.abc import Iterable

from pydantic import ValidationError

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, SettingsError
from ptpipeline.records import Holding, ServerReport, now
from ptpipeline.storage import ObjectStore

ATTEMPTS = 3

_FOLDER = "servers"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def report_holdings(store: ObjectStore, server: str, holds: Iterable[Holding]) -> ServerReport:
    """Let the store say what the server holds from now on, in place of its last report.

    Report a prompt before it is read: what a report names is not collected from then on. The name is the server's own,
    such as its host's. Raises SettingsError for a name that cannot be part of a key, PreconditionFailed where another
    process keeps writing under this name, and what the store raises.
    """
    if not _NAME.fullmatch(server):
        raise SettingsError(
            f"server name {server!r}: expected letters, digits and `._-`, beginning with a letter or digit, at most 200"
        )
    report = ServerReport(server=server, at=now(), holds=sorted(set(holds)))
    key, body = f"{_FOLDER}/{server}.json", report.model_dump_json(indent=1).encode()
    for _ in range(ATTEMPTS):
        try:
            _put(store, key, body)
        except PreconditionFailed:
            continue
        return report
    raise PreconditionFailed(
        f"{store.url}/{key}: another server reports under the same name; give each a name of its own"
    )


def server_reports(store: ObjectStore) -> list[ServerReport]:
    """The last report of every server, by name. Raises ArtifactError where one cannot be read: it may name anything."""
    found = []
    for key in store.keys(_FOLDER):
        try:
            found.append(ServerReport.model_validate_json(store.read(key).body))
        except NotFound:  # removed since it was listed
            continue
        except ValidationError as error:
            what = f"{error.errors()[0]['msg']}; it was altered, or a newer ptpipeline wrote it"
            raise ArtifactError(
                f"{store.url}/{key}: not a server's report: {what}: update this one, or remove the object "
                "where that server is gone"
            ) from None
    return found


def _put(store: ObjectStore, key: str, body: bytes) -> None:
    try:
        etag = store.read(key).etag
    except NotFound:
        store.create(key, body)
    else:
        store.replace(key, body, etag)
