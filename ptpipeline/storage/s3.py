"""S3Store: objects in one bucket of any S3 server that honours If-Match and If-None-Match.

A put may be applied although its answer says otherwise: the answer can be lost (time-out, cut connection, 500 after the
write), and the repeated request of the client or of a proxy is then refused because of our own first one. So every put
that was not answered with success is settled by reading back.
"""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC
from typing import Any, NamedTuple

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, ServiceUnavailable, SettingsError
from ptpipeline.settings import is_loopback
from ptpipeline.storage.bounds import check_bytes, max_bytes, read_bounded
from ptpipeline.storage.objects import Listed, Stored, check_key, without_login
from ptpipeline.storage.s3_answers import Pages, bound_answers
from ptpipeline.storage.s3_faults import (
    MALFORMED,
    Fault,
    explain_failure,
    explain_fault,
    read_fault,
    reading_fields,
)
from ptpipeline.storage.signed_get import SignedGet

_VERBS = {
    "get_object": "read",
    "head_object": "read",
    "put_object": "write",
    "delete_object": "delete",
    "list_objects_v2": "list",
}
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"  # the settings of the environment's identity, in words


class RequestLimits(NamedTuple):
    """How long a request waits for the server's answer, in seconds, and how often it is sent in total."""

    seconds: float = 30.0
    attempts: int = 4


LIMITS = RequestLimits()


def region() -> str:
    """Return the region of the bucket, by which requests are signed."""
    return os.environ.get("AWS_DEFAULT_REGION", "us-east-1")


# What a session of boto3 takes from no variable of the environment and no file: (in a file, variable, value, convert).
_ALONE = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}


_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def check_credential(name: str, value: str) -> None:
    """Raise SettingsError, which does not show it, if no request can carry the credential in that variable."""
    if not (value.isascii() and value.isprintable() and value == value.strip()):
        raise SettingsError(
            f"{name}: holds white space at its ends, a line end, or a character beyond ASCII, which no credential has; "
            "set it again: a file of variables with the line ends of Windows leaves a carriage return"
        )


class KeyPair(NamedTuple):
    """The credentials of one identity, whole: none of them comes from somewhere else."""

    id: str
    secret: str
    token: str | None = None


def make_client(
    endpoint: str | None, limits: RequestLimits = LIMITS, keys: KeyPair | None = None, service: str = "s3"
) -> Any:
    """Return boto3's client of an S3 server, with the given credentials or those that boto3 finds.

    service: the API that it is asked by, `s3` or `iam`.

    A server on this machine is asked directly, whatever proxy the environment names: that one would not find it.
    Raises ValueError if the endpoint is no address, BotoCoreError if the AWS_* settings are wrong, SettingsError if a
    credential of the environment is none.
    """
    import boto3
    import botocore.session
    from botocore.config import Config

    for name in _KEYS if keys is None else ():
        check_credential(name, os.environ.get(name, ""))
    config = Config(
        connect_timeout=min(5.0, limits.seconds),
        read_timeout=limits.seconds,
        retries={"mode": "standard", "total_max_attempts": limits.attempts},
        ignore_configured_endpoint_urls=keys is not None,  # AWS_ENDPOINT_URL is the server of other credentials
    )
    named = dict(zip(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), keys or (), strict=False))
    # the default session would keep the first credentials it saw; one of given keys takes no profile either
    session = boto3.session.Session(botocore_session=botocore.session.Session(_ALONE) if keys else None)
    client = session.client(service, endpoint_url=endpoint, region_name=region(), config=config, **named)
    if is_loopback(client.meta.endpoint_url) and urllib.request.getproxies():
        direct = config.merge(Config(proxies={}))
        client = session.client(service, endpoint_url=endpoint, region_name=region(), config=direct, **named)
    bound_answers(client, limits.seconds)
    return client


class _Unchanged(Exception):
    """The object still has the tag that the request named."""


class S3Store:
    """Credentials come from the environment as boto3 finds them, never from an address."""

    def __init__(
        self, bucket: str, prefix: str = "", endpoint: str | None = None, limits: RequestLimits = LIMITS
    ) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.endpoint = endpoint and without_login("PTP_S3_ENDPOINT", endpoint)
        self._client, self._once = self._connect(limits), self._connect(limits._replace(attempts=1))
        address = self._client.meta.endpoint_url
        self._get = SignedGet(f"{address}/{bucket}", region(), limits.seconds) if SignedGet.fits(address) else None
        self.where = f"{self.url} at {without_login('AWS_ENDPOINT_URL_S3', address)}"

    def _connect(self, limits: RequestLimits) -> Any:
        from botocore.exceptions import BotoCoreError

        try:
            return make_client(self.endpoint, limits)
        except BotoCoreError as error:
            raise SettingsError(f"object store {self.url}: the AWS_* settings are wrong: {error}") from None
        except ValueError as error:
            raise SettingsError(
                f"PTP_S3_ENDPOINT: {error}; expected an address such as http://127.0.0.1:8333"
            ) from None

    def read(self, key: str) -> Stored:
        stored = self._get.read(self._key(key), max_bytes(key)) if self._get else None
        if stored is not None:
            return stored
        return self._read_by_boto(key)

    def read_changed(self, key: str, etag: str) -> Stored | None:
        stored = self._get.read(self._key(key), max_bytes(key), etag) if self._get else None
        try:
            stored = stored or self._read_by_boto(key, IfNoneMatch=etag)
        except _Unchanged:
            return None
        return None if stored.etag == etag else stored

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", Key=self._key(key))
        except NotFound:
            return False
        except ArtifactError:  # an answer to HEAD tells no cause
            return bool(self.read(key))
        return True

    def create(self, key: str, body: bytes) -> None:
        check_bytes(self.url, key, len(body))
        try:
            self._call("put_object", Key=self._key(key), Body=body, IfNoneMatch="*")
        except (PreconditionFailed, NotFound, ServiceUnavailable) as error:
            stored = self._read_if_stored(key)
            if stored is None:
                raise self._put_error(error, key) from error
            if stored.body != body:
                raise PreconditionFailed(f"{self.url}: {key} exists already with other content") from error

    def replace(self, key: str, body: bytes, etag: str) -> None:
        check_bytes(self.url, key, len(body))
        try:
            self._call("put_object", Key=self._key(key), Body=body, IfMatch=etag)
        except (PreconditionFailed, NotFound, ServiceUnavailable) as error:
            stored = self._read_if_stored(key)
            if stored and stored.body == body:
                return
            if stored and stored.etag == etag:
                raise self._put_error(error, key) from error
            raise PreconditionFailed(f"{self.url}: {key} changed since it was read") from error

    def delete(self, key: str) -> None:
        """Send the request once: an answered repeat would hide that the first request may still arrive, and remove what
        is stored by then.
        """
        try:
            self._call("delete_object", Key=self._key(key))
        except NotFound:  # most servers answer 204
            return

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        for page in self._pages(prefix):
            with self._translating("list_objects_v2", prefix), reading_fields():
                listed = [
                    Listed(item["Key"].removeprefix(self.prefix), item["LastModified"].astimezone(UTC), item["Size"])
                    for item in page.get("Contents", [])
                ]
            yield from listed

    def keys(self, prefix: str) -> Iterator[str]:
        return (item.key for item in self.list_objects(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        for page in self._pages(prefix, Delimiter="/"):
            with self._translating("list_objects_v2", prefix), reading_fields():
                folders = [
                    item["Prefix"].removeprefix(self.prefix).removesuffix("/")
                    for item in page.get("CommonPrefixes", [])
                ]
            yield from folders

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        pages, token = Pages(), ""
        while True:
            following = {"ContinuationToken": token} if token else {}
            page = self._call("list_objects_v2", Prefix=f"{self._key(prefix)}/", **options, **following)
            yield page
            with self._translating("list_objects_v2", prefix):
                token = pages.check(page)
            if not token:
                return

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _read_by_boto(self, key: str, **condition: str) -> Stored:
        answer = self._call("get_object", Key=self._key(key), **condition)
        with self._translating("get_object", key):
            with reading_fields():
                etag, size = answer["ETag"], answer.get("ContentLength") or 0  # an answer in chunks states none
            with closing(answer["Body"]) as body:  # it is still on its way
                check_bytes(self.url, key, size)
                return Stored(read_bounded(self.url, key, body.read), etag)

    def _read_if_stored(self, key: str) -> Stored | None:
        try:
            return self.read(key)
        except NotFound:
            return None

    def _put_error(self, error: Exception, key: str) -> Exception:
        """Return what to raise if the object is as it was before our put: refused finally, or not known."""
        if isinstance(error, ServiceUnavailable):
            return error
        return PreconditionFailed(f"{self.url}: {key} was changed by another writer")

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        with self._translating(operation, str(arguments.get("Key", arguments.get("Prefix")))):
            answer: dict[str, Any] = getattr(self._once if operation == "delete_object" else self._client, operation)(
                Bucket=self.bucket, **arguments
            )
            return answer

    @contextmanager
    def _translating(self, operation: str, key: str) -> Iterator[None]:
        """Raise boto's errors as ours: what a person has to change is Terminal, a server that does not answer is
        Transient.
        """
        from botocore import exceptions as boto

        try:
            yield
        except boto.ClientError as error:
            raise self._translate(read_fault(error), _VERBS[operation], key) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise SettingsError(f"object store {self.url} needs {KEYS}: {error}") from error
        except boto.ParamValidationError as error:
            raise SettingsError(f"PTP_STORE: {self.url}: {' '.join(str(error).split())}") from error
        except (boto.BotoCoreError, *MALFORMED) as error:
            where, settings = f"object store {self.where}", "PTP_S3_ENDPOINT and AWS_DEFAULT_REGION"
            raise explain_failure(error, where, settings, "is it up? `ptp status`") from error

    def _translate(self, fault: Fault, verb: str, key: str) -> Exception:
        doing, code = f"{verb} {key}", fault.code
        if fault.meaning == "no bucket":
            return SettingsError(f"PTP_STORE: bucket {self.bucket!r} does not exist ({self.where}); create it")
        if fault.meaning == "unchanged":
            return _Unchanged()
        if fault.meaning == "absent":
            return NotFound(f"{self.url}: no object {key}")
        if fault.meaning == "changed" and verb == "write":
            return PreconditionFailed(f"{self.url}: {key} was changed by another writer")
        if fault.meaning == "withheld" and verb == "read":
            return ArtifactError(
                f"{self.url}/{key.removeprefix(self.prefix)}: the store does not give it out ({fault.status} {code}): "
                "it is archived, or encrypted by somebody's own key, as this program stores none; restore or remove it"
            )
        if fault.meaning == "right":
            return SettingsError(
                f"object store {self.where}: this identity may not {doing} ({code}); give it the policy of its "
                f"role (deploy/s3/), or set {KEYS} to one that may"
            )
        if fault.meaning == "lacks":
            return SettingsError(
                f"object store {self.where} cannot {doing} ({code}): it lacks what the registry needs; use a "
                "store that honours If-Match and If-None-Match"
            )
        common = explain_fault(fault, f"object store {self.where}", doing, KEYS)
        return common or ServiceUnavailable(f"object store {self.where} answered {fault.status} {code} to {doing}")
