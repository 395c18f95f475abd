"""A small server that speaks the read API of the Hugging Face hub: info, refs, tree and resolve."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple
from urllib.parse import unquote, urlsplit

from tests.http_server import Quiet, serve

COMMIT = "c0ffee" * 6 + "c0ff"


class Repository(NamedTuple):
    """What a repository holds at its only commit, which is `main`; a gated one gives its files to nobody. `sizes` are
    those that it tells of files, if they are others than theirs.
    """

    files: dict[str, bytes]
    sizes: dict[str, int]
    gated: bool = False


class Hub(NamedTuple):
    """Repositories by their place (`datasets/org/name`, `models/org/name`), what was asked of them, and the address."""

    repositories: dict[str, Repository]
    asked: list[str]
    address: str

    def put(self, place: str, gated: bool = False, **files: bytes | str) -> None:
        self.repositories[place] = Repository(
            {path: body.encode() if isinstance(body, str) else body for path, body in files.items()}, {}, gated
        )


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub until the block ends."""
    hub = Hub({}, [], "")

    class Answering(Answers):
        repositories, asked = hub.repositories, hub.asked

    with serve(Answering) as address:
        yield hub._replace(address=address)


class Answers(Quiet):
    """What a hub answers."""

    repositories: ClassVar[dict[str, Repository]]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:  # noqa: N802
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(f"{self.command} {path}")
        if path.startswith("api/"):
            self.inform(path.removeprefix("api/"))
        else:
            self.resolve(path if path.startswith("datasets/") else f"models/{path}")

    do_HEAD = do_GET  # noqa: N815

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def find(self, path: str, verb: str) -> tuple[Repository, str] | None:
        """The repository, and what stands behind the commit; answers itself if there is none."""
        place, found, rest = path.partition(f"/{verb}/")
        revision, _, rest = rest.partition("/")
        repository = self.repositories.get(place)
        if repository is None:
            self.refuse(401, "RepoNotFound")
        elif repository.gated:
            self.refuse(403, "GatedRepo")
        elif found and revision not in (COMMIT, "main"):
            self.refuse(404, "RevisionNotFound")
        else:
            return repository, rest
        return None

    def inform(self, path: str) -> None:
        if path.endswith("/refs"):
            if self.find(path.removesuffix("/refs"), "refs"):
                branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
                self.answer(200, json.dumps({"branches": [branch], "converts": [], "tags": []}).encode())
        elif "/tree/" in path:
            if found := self.find(path, "tree"):
                self.answer(200, json.dumps(list(entries(found[0]))).encode())
        elif found := self.find(path, "revision"):
            siblings = [{"rfilename": name} for name in found[0].files]
            self.answer(200, json.dumps({"id": path, "sha": COMMIT, "siblings": siblings}).encode())

    def resolve(self, path: str) -> None:
        found = self.find(path, "resolve")
        if found is None:
            return
        repository, name = found
        if name not in repository.files:
            self.refuse(404, "EntryNotFound")
            return
        body = repository.files[name]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def entries(repository: Repository) -> Iterator[dict[str, object]]:
    folders: set[str] = set()
    for path, body in repository.files.items():
        parts = path.split("/")
        folders |= {"/".join(parts[:count]) for count in range(1, len(parts))}
        yield {
            "type": "file",
            "path": path,
            "size": repository.sizes.get(path, len(body)),
            "oid": hashlib.sha1(body).hexdigest(),
        }
    yield from ({"type": "directory", "path": path, "oid": "0" * 40} for path in folders)
