"""Rows in objects of any S3 server: one object, or all below a prefix.

What is read is what was listed: each object is asked for under its ETag. An object's key never becomes a path.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ptpipeline.data.files import MAX_BYTES
from ptpipeline.data.local import MAX_FILES, Several, load_rows
from ptpipeline.data.table import Part, Wanted
from ptpipeline.errors import DataError, ServiceUnavailable, SettingsError
from ptpipeline.foreign import shorten
from ptpipeline.records.base import MAX_INTEGER
from ptpipeline.storage.s3 import KeyPair, check_credential, make_client
from ptpipeline.storage.s3_answers import Pages
from ptpipeline.storage.s3_faults import (
    MALFORMED,
    Strange,
    explain_failure,
    explain_fault,
    read_fault,
    reading_fields,
)
from ptpipeline.task.source import FORMATS, S3Objects, Source

_PIECE = 8 * 2**20


class _Object(NamedTuple):
    key: str
    etag: str
    size: int

    @classmethod
    def read(cls, key: str, told: Any) -> "_Object":
        """Return the object of that key as an answer tells it; Strange if it has a size that no object can have."""
        with reading_fields():
            size, etag = told["Size"] if "Size" in told else told["ContentLength"], told["ETag"]
            if not 0 <= size <= MAX_INTEGER:
                raise Strange("a size that is none")
        return cls(key, etag, size)


def identify(source: Source, home: Path) -> list[list[str | int]]:
    """Return key, ETag and size of each object; raises what `read` raises, but reads no object."""
    return [[*found] for found in _Bucket(_objects(source)).list()]


def read(source: Source, wanted: Sequence[Wanted], home: Path) -> Iterator[Part]:
    """Yield the name and the wanted columns of each object, in the order of their keys.

    Raises DataError if there is no such bucket or object, SettingsError for credentials and rights, ServiceUnavailable
    if the server does not answer or an object changed since it was listed, and what `load_rows` raises.
    """
    bucket = _Bucket(_objects(source))
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    objects = bucket.list()
    several = Several(len(objects))
    for found in objects:
        name = bucket.name(found.key)
        with several.reading(), tempfile.NamedTemporaryFile(prefix=".s3-", dir=home) as file:
            bucket.download(found, file)
            file.flush()
            yield Part(name, load_rows(Path(file.name), name, source, wanted, home))


def _objects(source: Source) -> S3Objects:
    if source.s3 is None:
        raise DataError("data.source names no objects of S3")
    return source.s3


class _Bucket:
    """The bucket of a source; its errors name the source's own settings, and no credential."""

    def __init__(self, objects: S3Objects) -> None:
        from botocore.exceptions import BotoCoreError

        self._objects = objects
        at = f" at {objects.endpoint}" if objects.endpoint else ""
        self._where = f"data.source.s3: {shorten(objects.url)[1:-1]}{at}"
        try:
            self._client = make_client(objects.endpoint, keys=_read_keys(objects))
        except (ValueError, BotoCoreError) as error:
            raise SettingsError(f"{self._where}: no client of it can be made ({type(error).__name__})") from None

    def name(self, key: str) -> str:
        """Return the object's address for messages and manifests."""
        return f"s3://{self._objects.bucket}/{shorten(key, 1100)[1:-1]}"

    def list(self) -> list[_Object]:
        """Return the objects by key; below a prefix, empty ones and marks are left out, as they hold no rows."""
        if self._objects.key and not self._objects.key.endswith("/"):
            with self._translating():
                found = self._client.head_object(Bucket=self._objects.bucket, Key=self._objects.key)
                return [_Object.read(self._objects.key, found)]
        objects, listed = [], Pages()
        with self._translating():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._objects.bucket, Prefix=self._objects.key):
                with reading_fields():
                    if not page.keys() & {"Name", "IsTruncated"}:
                        raise Strange("a page of HTML, which lists nothing")
                    objects += [_Object.read(one["Key"], one) for one in page.get("Contents", ())]
                if len(objects) > MAX_FILES:
                    raise DataError(f"{self._where}: more than {MAX_FILES} objects below it; name a longer prefix")
                listed.check(page)
        objects = sorted(one for one in objects if one.size and not _is_mark(one.key))
        if not objects:
            raise DataError(f"{self._where}: no object with rows is below it; correct the prefix")
        return objects

    def download(self, one: _Object, file: Any) -> None:
        """Write the object, as it was listed, to the file."""
        name = self.name(one.key)
        if one.size > MAX_BYTES:
            raise DataError(f"{name}: {one.size} bytes; a source may have at most {MAX_BYTES} bytes: give a part of it")
        with self._translating():
            answer = self._client.get_object(Bucket=self._objects.bucket, Key=one.key, IfMatch=one.etag)
            with reading_fields():
                etag = answer["ETag"]
            with closing(answer["Body"]) as body:
                count = 0
                while piece := body.read(min(_PIECE, one.size - count + 1)):
                    count += len(piece)
                    file.write(piece)
                    if count > one.size:
                        break
        if count != one.size or etag != one.etag:
            raise ServiceUnavailable(f"{name}: changed while it was read; run again")

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Raise boto's errors as ours: what a person has to change is Terminal, what may pass is Transient."""
        from botocore import exceptions as boto

        try:
            yield
        except boto.ClientError as error:
            raise self._translate(error) from None
        except (boto.NoCredentialsError, boto.PartialCredentialsError):
            raise SettingsError(
                f"{self._where}: there are no credentials; name the variables that hold them in "
                "data.source.s3.credentials_env"
            ) from None
        except (boto.ParamValidationError, UnicodeError):
            raise DataError(f"{self._where}: no bucket or key can be called so; correct data.source.s3.url") from None
        except (boto.BotoCoreError, *MALFORMED) as error:
            where, advice = f"{self._where}: the server", "check the address and the network"
            raise explain_failure(error, where, "data.source.s3.endpoint", advice) from None

    def _translate(self, error: Any) -> Exception:
        fault = read_fault(error)
        meaning, status, code = fault
        if meaning == "no bucket" or (meaning == "absent" and not self._has_bucket()):
            return DataError(f"{self._where}: there is no bucket {self._objects.bucket}; correct the url")
        if meaning == "absent":
            return DataError(f"{self._where}: there is no such object; name its key, or a prefix that ends with `/`")
        if meaning == "changed":
            return ServiceUnavailable(f"{self._where}: an object changed while it was read; run again")
        keys = ", ".join(self._objects.credentials_env or ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
        if status == 400 and meaning == "withheld":  # a key that no object can have, or a token that is out of date
            return SettingsError(
                f"{self._where}: the server takes no such request (400 {code}); check the url, and the credentials in "
                f"{keys}"
            )
        return explain_fault(fault, f"{self._where}: the server", "let it be read", keys) or SettingsError(
            f"{self._where}: the server refuses to let it be read ({status} {code}); check the credentials in {keys}, "
            "and their right to read and to list"
        )

    def _has_bucket(self) -> bool:
        """Whether the server says that the bucket is there; the answer to a HEAD of an object does not tell."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.head_bucket(Bucket=self._objects.bucket)
        except ClientError as error:
            return bool(error.response["ResponseMetadata"]["HTTPStatusCode"] != 404)
        except BotoCoreError:
            return True
        return True


def _is_mark(key: str) -> bool:
    """Whether an object is a note beside the rows: a hidden one, or Spark's `_SUCCESS`, `_metadata`, `_committed_1`."""
    name = key.rpartition("/")[2].lower()
    return name.startswith(".") or (name.startswith("_") and not any(f".{form}" in name for form in FORMATS))


def _read_keys(objects: S3Objects) -> KeyPair | None:
    if objects.credentials_env is None:
        return None
    missing = [name for name in objects.credentials_env if not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"data.source.s3.credentials_env: the environment variable {missing[0]} is not set; set it to the "
            "credential that it stands for"
        )
    for name in objects.credentials_env:
        check_credential(name, os.environ[name])
    return KeyPair(*(os.environ[name] for name in objects.credentials_env))
