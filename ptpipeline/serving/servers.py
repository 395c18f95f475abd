"""Which prompts each server holds, at `servers/<name>.json` in the object store, so that nobody deletes them."""

from collections.abc import Iterable

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, SettingsError
from ptpipeline.foreign import ALTERED, parse_record
from ptpipeline.records.base import now
from ptpipeline.records.serving import CanaryTally, Holding, Observed, PassedOn, Refused, ServerReport, Tally
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import SERVERS, is_server_name, server_key
from ptpipeline.storage.objects import is_key

ATTEMPTS = 3
_UNREADABLE = f"{ALTERED}: update this ptpipeline, or remove the object if that server is gone"


def report_holdings(
    store: ObjectStore,
    server: str,
    holds: Iterable[Holding],
    observed: Iterable[Observed] = (),
    refused: Iterable[Refused] = (),
    trials: Iterable[Tally] = (),
    canaries: Iterable[CanaryTally] = (),
    passed: Iterable[PassedOn] = (),
) -> ServerReport:
    """Store what the server holds from now on, in place of its last report, and return the report.

    observed, refused: the promotions that it answers by, and those that it does not take. trials, canaries: what became
    of its shadows and canaries so far. passed: what it was told of other servers' answers.

    Report a prompt before you read it: garbage collection keeps what a report names. `server` is the server's own name,
    such as its host's. Raises SettingsError for a name that cannot be part of a key, PreconditionFailed if another
    process keeps writing under this name, and what the store raises.
    """
    if not is_server_name(server):
        raise unfit_name(server)
    report = ServerReport(
        server=server,
        at=now(),
        holds=sorted(set(holds)),
        observed=sorted(observed),
        refused=sorted(refused),
        trials=sorted(trials),
        canaries=sorted(canaries),
        passed=sorted(passed),
    )
    report = report.model_copy(update={"sha256": report.compute_sha256()})
    key, body = server_key(server), report.model_dump_json(indent=1).encode()
    for _ in range(ATTEMPTS):
        try:
            _put(store, key, body)
        except PreconditionFailed:
            continue
        return report
    raise PreconditionFailed(
        f"{store.url}/{key}: another server reports under the same name; give each a name of its own"
    )


def unfit_name(server: str) -> SettingsError:
    """Return the error for a server's name that cannot be part of a key."""
    return SettingsError(
        f"server name {server!r}: expected at most 200 letters, digits and `._-`, beginning with a letter or digit"
    )


def read_server_reports(store: ObjectStore) -> list[ServerReport]:
    """Return the last report of every server, by name.

    Raises ArtifactError if one cannot be read: it may name any prompt. At a key that no store takes, such as that of a
    folder which a console made, no server reports.
    """
    reports = []
    for key in filter(is_key, store.keys(SERVERS)):
        try:
            body = store.read(key).body
        except NotFound:  # removed since it was listed
            continue
        reports.append(parse_server_report(store, key, body))
    return reports


def parse_server_report(store: ObjectStore, key: str, body: bytes) -> ServerReport:
    """Return the report in those bytes; ArtifactError if they are none, or not what the server of that key wrote.

    A report of an older ptpipeline has no digest, so that rot in it is seen only if it cannot be read.
    """
    what = f"{store.url}/{key}: not a server's report"
    report = parse_record(ServerReport, body, what, _UNREADABLE)
    named = is_server_name(report.server) and server_key(report.server) == key
    if not named or report.sha256 not in ("", report.compute_sha256()):
        raise ArtifactError(f"{what}: it is of another server, or its digest does not match; {_UNREADABLE}")
    return report


def _put(store: ObjectStore, key: str, body: bytes) -> None:
    try:
        etag = store.read(key).etag
    except NotFound:
        store.create(key, body)
    else:
        store.replace(key, body, etag)
