"""Answers of an S3 server, or of its IAM, within a bound: lists and errors, which botocore reads whole, in bytes and in
time, and objects, which come as streams, in time.

botocore itself reads whatever comes, as long as each read gives a byte.
"""

import time
from functools import partial
from typing import Any

from ptpipeline.storage.bounds import is_late
from ptpipeline.storage.s3_faults import Strange, reading_fields

MAX_ANSWER = 4 * 2**20  # bytes: a list has at most 1000 keys of 1024 bytes, each written as at most three
MAX_TAGS = 100_000  # of XML; a key takes some 20
MAX_EMPTY = 100  # pages of a list, one behind the other, that hold nothing
_PIECE = 2**16


def bound_answers(client: Any, seconds: float) -> None:
    """Let a client of boto3 read no answer, but an object, that is longer than any of S3, or takes so many seconds; an
    object has longer, by its bytes.
    """
    service = client.meta.service_model.service_id.hyphenize()
    client.meta.events.register(f"before-send.{service}", partial(_send, client, seconds))


def _send(client: Any, seconds: float, request: Any, **_: Any) -> Any:
    """Send the request as botocore does, and read the body here, but that of an object: botocore would read it where it
    tries nothing again.
    """
    from botocore.awsrequest import AWSResponse

    asks_object, request.stream_output = request.stream_output, True
    answer = client._endpoint.http_session.send(request)
    body = _InTime(answer.raw, answer.url, seconds)
    response = AWSResponse(answer.url, answer.status_code, answer.headers, body)
    if not asks_object or answer.status_code >= 300:
        response._content = _read_answer(body, answer.url, seconds)
    return response


def _read_answer(body: "_InTime", url: str, seconds: float) -> bytes:
    from botocore.exceptions import ReadTimeoutError

    found, tags, ends = bytearray(), 0, time.monotonic() + seconds
    while piece := body.read1(_PIECE):
        found += piece
        tags += piece.count(b"<")
        if len(found) > MAX_ANSWER or tags > MAX_TAGS:
            raise Strange("a longer answer than S3 has")
        if time.monotonic() > ends:
            raise ReadTimeoutError(endpoint_url=url)
    return bytes(found)


class _InTime:
    """A body of urllib3 that is given up if its bytes trickle in."""

    def __init__(self, raw: Any, url: str, seconds: float) -> None:
        self._raw, self._url, self._seconds = raw, url, seconds
        self._began, self._count = time.monotonic(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def read1(self, most: int) -> bytes:
        """Return what has come, at most so many bytes; raise botocore's ReadTimeoutError if it comes too slowly, and
        ResponseStreamingError if it breaks off.
        """
        import urllib3.exceptions
        from botocore.exceptions import ReadTimeoutError, ResponseStreamingError

        try:
            piece: bytes = self._raw.read1(most)
        except urllib3.exceptions.TimeoutError:
            raise ReadTimeoutError(endpoint_url=self._url) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ResponseStreamingError(error=error) from error
        if not piece and self._raw.length_remaining:  # urllib3 takes what came for all, if it is read so
            raise ResponseStreamingError(error="the server hung up")
        self._count += len(piece)
        if is_late(self._began, self._seconds, self._count):
            raise ReadTimeoutError(endpoint_url=self._url)
        return piece

    def read(self, most: int | None = None) -> bytes:
        """Return so many bytes, or all that are left; raises what `read1` raises."""
        body = bytearray()
        while most is None or len(body) < most:
            piece = self.read1(_PIECE if most is None else min(_PIECE, most - len(body)))
            if not piece:
                break
            body += piece
        return bytes(body)


class Pages:
    """Watches that a list comes to an end: each of its pages but a few holds something, or names another one."""

    def __init__(self) -> None:
        self._empty, self._token = 0, ""

    def check(self, page: Any) -> str:
        """Return the token of the next page, "" behind the last; raise Strange if the list does not come to an end."""
        with reading_fields():
            if not page.get("IsTruncated"):
                return ""
            token, holds = str(page["NextContinuationToken"]), page.get("Contents") or page.get("CommonPrefixes")
        self._empty = 0 if holds else self._empty + 1
        if token == self._token or self._empty > MAX_EMPTY:
            raise Strange("a list that does not end")
        self._token = token
        return token
