"""ObjectStore: S3 (boto3) and a local folder behind one protocol, with conditional puts.

Immutable content goes in with `create` (If-None-Match: *), pointers move with `replace` (If-Match). A put that lost
raises PreconditionFailed; a put whose answer was lost on the way is read back, because the refusal of a repeated
request may be our own first write.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlparse

from filelock import FileLock

from ptpipeline.errors import NotFound, PreconditionFailed, ServiceUnavailable, SettingsError

_KEY = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")


class Stored(NamedTuple):
    """An object's bytes and the tag that a conditional replace has to cite."""

    body: bytes
    etag: str


class ObjectStore(Protocol):
    """Keys are slash-separated names; bodies are bytes; every put is conditional."""

    url: str

    def read(self, key: str) -> Stored:
        """The object's bytes and tag; NotFound where there is none."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    def create(self, key: str, body: bytes) -> None:
        """Put a new object; PreconditionFailed where the key is taken by other bytes, silent where by the same."""

    def replace(self, key: str, body: bytes, etag: str) -> None:
        """Overwrite the object that was read under `etag`; PreconditionFailed where it changed since."""

    def delete(self, key: str) -> None:
        """Remove the object; silent where there is none."""

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below the folder `prefix`, in order."""


def open_store(url: str, s3_endpoint: str | None = None) -> ObjectStore:
    """The store that `PTP_STORE` names: `file:///folder` or `s3://bucket[/prefix]`.

    Raises SettingsError where the address is neither.
    """
    if url.startswith("file:///"):
        return FolderStore(Path(url.removeprefix("file://")))  # not a URL's path: `#`, `?` and `%` may stand in a folder's name
    parsed = urlparse(url)
    if parsed.scheme == "s3" and parsed.netloc:
        return S3Store(parsed.netloc, parsed.path.strip("/"), s3_endpoint)
    raise SettingsError(f"PTP_STORE: {url!r} is not a store; expected file:///absolute/folder or s3://bucket[/prefix]")


def checked_key(key: str) -> str:
    """`key` itself where it is a safe relative name, else SettingsError: keys become paths and URLs."""
    if not _KEY.fullmatch(key):
        raise SettingsError(f"object key {key!r}: expected names of letters, digits, `._-` separated by `/`")
    return key


class FolderStore:
    """Objects as files below one folder: for tests, notebooks and a machine without servers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def read(self, key: str) -> Stored:
        path = self._path(key)
        try:
            body = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{self.url}: no object {key}") from None
        return Stored(body, hashlib.sha256(body).hexdigest())

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def create(self, key: str, body: bytes) -> None:
        path = self._path(key)
        temporary = self._temporary(path, body)
        try:
            os.link(temporary, path)  # atomic and exclusive, unlike rename
            _sync(path.parent)
        except FileExistsError:
            if path.read_bytes() != body:
                raise PreconditionFailed(f"{self.url}: {key} exists already with other content") from None
        finally:
            temporary.unlink()

    def replace(self, key: str, body: bytes, etag: str) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            if not path.is_file() or self.read(key).etag != etag:
                raise PreconditionFailed(f"{self.url}: {key} changed since it was read")
            self._temporary(path, body).rename(path)
            _sync(path.parent)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> Iterator[str]:
        folder = self._path(prefix)
        found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        yield from sorted(path.relative_to(self.root).as_posix() for path in found)

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _temporary(self, path: Path, body: bytes) -> Path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".put-", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SettingsError(f"{self.url}: cannot write {path.name}: {error.strerror}; mend the folder, or name another with PTP_STORE") from error
        return Path(name)


def _sync(folder: Path) -> None:
    """Make a rename or link durable: the folder entry is data of its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class S3Store:
    """Objects in one bucket of any S3 server that honours If-Match and If-None-Match."""

    def __init__(self, bucket: str, prefix: str = "", endpoint: str | None = None) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.endpoint = endpoint
        config = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 4})
        try:
            self._client = boto3.session.Session().client(  # the default session would keep the first credentials it saw
                "s3", endpoint_url=endpoint, region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"), config=config
            )
        except ValueError as error:
            raise SettingsError(f"PTP_S3_ENDPOINT: {error}; expected an address such as http://127.0.0.1:8333") from None
        except BotoCoreError as error:
            raise SettingsError(f"object store {self.url}: the AWS_* settings are wrong: {error}") from None

    def read(self, key: str) -> Stored:
        answer = self._call("get_object", Key=self._key(key))
        with self._translating(key):  # the body is still on its way
            return Stored(answer["Body"].read(), answer["ETag"])

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", Key=self._key(key))
        except NotFound:
            return False
        return True

    def create(self, key: str, body: bytes) -> None:
        self._put(key, body, IfNoneMatch="*")

    def replace(self, key: str, body: bytes, etag: str) -> None:
        self._put(key, body, IfMatch=etag)

    def delete(self, key: str) -> None:
        self._call("delete_object", Key=self._key(key))

    def keys(self, prefix: str) -> Iterator[str]:
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=f"{self._key(prefix)}/", **token)
            for item in page.get("Contents", []):
                yield item["Key"].removeprefix(self.prefix)
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _key(self, key: str) -> str:
        return self.prefix + checked_key(key)

    def _put(self, key: str, body: bytes, **condition: str) -> None:
        try:
            self._call("put_object", Key=self._key(key), Body=body, **condition)
        except PreconditionFailed:
            if self._holds(key, body):  # the client's own retry met its own first write
                return
            raise
        except ServiceUnavailable:
            if self._holds(key, body):  # the answer was lost, the write was not
                return
            raise

    def _holds(self, key: str, body: bytes) -> bool:
        try:
            return self.read(key).body == body
        except NotFound:
            return False

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        with self._translating(str(arguments.get("Key", ""))):
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self.bucket, **arguments)
            return answer

    @contextmanager
    def _translating(self, key: str) -> Iterator[None]:
        """boto's errors as ours: what a person has to change is Terminal, a server that does not answer is Transient."""
        from botocore import exceptions as boto

        try:
            yield
        except boto.ClientError as error:
            raise self._translated(error.response, key) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise SettingsError(f"object store {self.url} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: {error}") from error
        except boto.ParamValidationError as error:
            raise SettingsError(f"PTP_STORE: {self.url}: {' '.join(str(error).split())}") from error
        except boto.BotoCoreError as error:
            raise ServiceUnavailable(f"object store {self.url} at {self.endpoint or 'AWS'} does not answer ({type(error).__name__}); is it up? `ptp status`") from error

    def _translated(self, response: Any, key: str) -> Exception:
        status, code = response["ResponseMetadata"]["HTTPStatusCode"], response["Error"].get("Code", "")
        if code == "NoSuchBucket":
            return SettingsError(f"PTP_STORE: bucket {self.bucket!r} does not exist at {self.endpoint or 'AWS'}; create it")
        if status in (409, 412) or code == "PreconditionFailed":
            return PreconditionFailed(f"{self.url}: {key} was changed by another writer")
        if status == 404:
            return NotFound(f"{self.url}: no object {key}")
        if status in (401, 403):
            return SettingsError(f"object store {self.url} refuses the credentials ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return ServiceUnavailable(f"object store {self.url} answered {status} {code} for {key}")
