"""A small S3 server in this process, as strict or as careless as a test wants it; no signatures are verified."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

IGNORES_IF_NONE_MATCH = "ignores If-None-Match"
IGNORES_IF_MATCH = "ignores If-Match"
RACES_WITHOUT_LOCK = "conditions are checked, then forgotten while it writes"
MISSING_IS_404 = "a replace of a missing key is 404, as on AWS"
CONFLICTS = "every conditional put is 409, as on AWS in a race"
REFUSES_ALL_IF_MATCH = "every If-Match is 412, as on Ceph with a quoted tag"
NOT_IMPLEMENTED = "every conditional put is 501"
FORGETS = "keeps the first bytes of a key whatever is written"

PAGE = 2  # names on a page of a listing; other servers give 1,000


class SmallS3(ThreadingHTTPServer):
    """Objects of all buckets by path; `manner` is the one way in which it differs from a right server."""

    daemon_threads = True

    def __init__(self, manner: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manner = manner
        self.objects: dict[str, bytes] = {}
        self.withheld: dict[str, tuple[int, str]] = {}  # status and code of what is not given out, by path
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def refusal(self, path: str, headers: Any) -> int | None:
        """The status that a put is refused with; None if its condition holds."""
        held = self.objects.get(path)
        if self.manner in (CONFLICTS, NOT_IMPLEMENTED) and (headers["If-None-Match"] or headers["If-Match"]):
            return 409 if self.manner == CONFLICTS else 501
        if headers["If-None-Match"] and held is not None and self.manner != IGNORES_IF_NONE_MATCH:
            return 412
        if headers["If-Match"] and self.manner != IGNORES_IF_MATCH:
            if held is None:
                return 404 if self.manner == MISSING_IS_404 else 412
            return 412 if headers["If-Match"] != etag(held) or self.manner == REFUSES_ALL_IF_MATCH else None
        return None


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


@contextmanager
def small_s3(manner: str = "") -> Iterator[SmallS3]:
    """The server until the block ends."""
    with SmallS3(manner) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallS3

    def do_PUT(self) -> None:
        body, path = self.rfile.read(int(self.headers["Content-Length"])), self._path()
        with self.server.lock:
            refused = self.server.refusal(path, self.headers)
            if self.server.manner != RACES_WITHOUT_LOCK and refused is None:
                self._write(path, body)
        if self.server.manner == RACES_WITHOUT_LOCK and refused is None:
            time.sleep(0.1)
            self._write(path, body)
        self._answer(refused or 200, {"ETag": etag(body)})

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._list(query["prefix"][0], query.get("delimiter", [""])[0], query.get("continuation-token", [""])[0])
            return
        body = self.server.objects.get(self._path())
        if self._path() in self.server.withheld:
            status, code = self.server.withheld[self._path()]
            self._answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
        elif body is None:
            self._answer(404)
        else:
            self._answer(200, {"ETag": etag(body)}, body)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        self.server.objects.pop(self._path(), None)
        self._answer(204)

    def _write(self, path: str, body: bytes) -> None:
        if self.server.manner == FORGETS:
            self.server.objects.setdefault(path, body)
        else:
            self.server.objects[path] = body

    def _list(self, prefix: str, delimiter: str, after: str) -> None:
        """A page of two keys, or of what they have in common up to the delimiter; the token is the last one of them."""
        root, items = f"{self._path().rstrip('/')}/", dict[str, str]()
        for path, body in sorted(self.server.objects.items()):
            key = path.removeprefix(root)
            head, cut, _ = key.removeprefix(prefix).partition(delimiter or "/")
            if not path.startswith(root + prefix):
                continue
            if delimiter and cut:
                common = escape(prefix + head + cut)
                items[prefix + head + cut] = f"<CommonPrefixes><Prefix>{common}</Prefix></CommonPrefixes>"
            else:
                written = f"<LastModified>2026-01-02T03:04:05.000Z</LastModified><Size>{len(body)}</Size>"
                items[key] = f"<Contents><Key>{escape(key)}</Key>{written}</Contents>"
        left = [name for name in sorted(items) if name > after]
        page = "".join(items[name] for name in left[:PAGE])
        more = f"<NextContinuationToken>{escape(left[PAGE - 1])}</NextContinuationToken>" if left[PAGE:] else ""
        truncated = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        self._answer(200, {}, f"<ListBucketResult>{truncated}{more}{page}</ListBucketResult>".encode())

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {
            **(headers or {}),
            "Last-Modified": formatdate(usegmt=True),
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
