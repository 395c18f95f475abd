"""What the errors of the hub's client mean: ours keep their kind, a login is a setting, a fault of the hub passes."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, errors

from ptpipeline.errors import BaseModelError, DataError, PtpError, ServiceUnavailable, SettingsError
from ptpipeline.hub import asking_hub, download, open_hub
from tests.http_server import Quiet, serve
from tests.hub_server import COMMIT, Hub
from tests.tiny import tiny_base


def answered(kind: type[Exception], status: int) -> Exception:
    """The client's error about an answer of that status."""
    response: Any = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind("no", response=response)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        (answered(errors.HfHubHTTPError, 401), SettingsError, r"lab/x: the hub refuses the login \(401\)"),
        (answered(errors.HfHubHTTPError, 403), SettingsError, r"lab/x: the hub refuses the login \(403\)"),
        (answered(errors.HfHubHTTPError, 429), ServiceUnavailable, "lab/x: the hub answered 429; run again later"),
        (answered(errors.HfHubHTTPError, 500), ServiceUnavailable, "lab/x: the hub answered 500; run again later"),
        (answered(errors.GatedRepoError, 403), SettingsError, "lab/x: it is gated"),
        (answered(errors.RepositoryNotFoundError, 404), DataError, "lab/x: the hub has no such repository"),
        (answered(errors.RevisionNotFoundError, 404), DataError, "lab/x: the repository has no such commit"),
        (answered(errors.RemoteEntryNotFoundError, 404), DataError, "lab/x: the repository lacks a file"),
        (errors.HFValidationError("no"), DataError, "lab/x: no repository of the hub can be called so"),
        (TimeoutError("no"), ServiceUnavailable, r"lab/x: the hub does not answer \(TimeoutError\)"),
        (BaseModelError("ours"), BaseModelError, "^ours$"),
    ],
)
def test_an_error_of_the_client_is_ours(raised: Exception, kind: type[PtpError], told: str) -> None:
    with pytest.raises(kind, match=told) as caught, asking_hub("lab/x", DataError):
        raise raised
    assert type(caught.value) is kind


@pytest.mark.parametrize(("endpoint", "asked"), [("http://hub.intern", "http://hub.intern"), ("", None), (None, None)])
def test_the_hub_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None, asked: str | None
) -> None:
    if endpoint is None:
        monkeypatch.delenv("HF_ENDPOINT", raising=False)
    else:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert open_hub().endpoint == (asked or constants.ENDPOINT)


def hostile(answer: Callable[[Any], None]) -> type[Quiet]:
    """A handler that answers whatever is asked of a hub by that function."""

    class Hostile(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            with suppress(OSError):  # who asked leaves in the middle
                answer(self)

        do_HEAD = do_GET  # noqa: N815

    return Hostile


def send_empty_pages(asked: Any) -> None:
    """Answer with a page that holds nothing, and names the next one."""
    asked.send_response(200)
    asked.send_header("Link", f'<http://{asked.headers["Host"]}/api/datasets/lab/x/tree/main>; rel="next"')
    asked.send_header("Content-Length", "2")
    asked.end_headers()
    asked.wfile.write(b"[]")


def send_for_ever(asked: Any) -> None:
    """Answer without a length and without an end."""
    asked.send_response(200)
    asked.send_header("ETag", '"x"')
    asked.send_header("X-Repo-Commit", COMMIT)
    asked.end_headers()
    while asked.command == "GET":
        asked.wfile.write(b"[" * 2**20)


def send_packed(asked: Any) -> None:
    """Answer with a few bytes that unfold twice."""
    body = gzip.compress(gzip.compress(b"[" * 2**20))
    asked.send_response(200)
    asked.send_header("Content-Encoding", "gzip, gzip")
    asked.send_header("Content-Length", str(len(body)))
    asked.end_headers()
    asked.wfile.write(body)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (send_empty_pages, "lab/x: the hub sends more than the 4194304 bytes that it may have; check HF_ENDPOINT"),
        (send_for_ever, "lab/x: the hub sends more than the 4194304 bytes that it may have; check HF_ENDPOINT"),
        (send_packed, "127.0.0.1: packs its answers, though it is asked not to; check HF_ENDPOINT"),
    ],
)
def test_a_list_that_never_ends_or_unfolds_is_a_wrong_server(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[Any], None], told: str
) -> None:
    with serve(hostile(answer)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        hub = open_hub()
        with pytest.raises(SettingsError, match=told), asking_hub("lab/x", DataError, 4 * 2**20):
            list(hub.list_repo_tree("lab/x", repo_type="dataset"))


def test_a_file_that_never_ends_fills_no_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ptpipeline.hub.MAX_TOLD", 4 * 2**20)
    with serve(hostile(send_for_ever)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(SettingsError, match="the hub sends more than the 4194314 bytes that it may have"):
            download(open_hub(), "lab/x", "rows.csv", 10, "lab/x", DataError, revision=COMMIT, local_dir=tmp_path)
    assert not (tmp_path / "rows.csv").exists()


def test_an_answer_that_trickles_in_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptpipeline.hub.SECONDS", -1000)
    with serve(hostile(send_empty_pages)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ServiceUnavailable, match="lab/x: the hub sends its answer too slowly"):  # noqa: SIM117
            with asking_hub("lab/x", DataError):
                list(open_hub().list_repo_tree("lab/x", repo_type="dataset"))


@pytest.mark.parametrize("size", [3, 19])
def test_a_file_of_another_size_than_listed_is_refused(hub: Hub, tmp_path: Path, size: int) -> None:
    hub.put("models/lab/x", **{"rows.csv": "text,label\n"})
    with pytest.raises(DataError, match=f"lab/x: the hub lists rows.csv with {size} bytes and sends 11"):
        download(open_hub(), "lab/x", "rows.csv", size, "lab/x", DataError, revision=COMMIT, local_dir=tmp_path)
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("HF_HUB_DOWNLOAD_TIMEOUT", "ten", "no number, as the client of the hub needs; correct or unset it"),
        ("PYTHONOPTIMIZE", "2", "from level 2 on (or -OO) Python leaves out docstrings"),
    ],
)
def test_a_variable_that_no_model_can_be_read_with_is_named(tmp_path: Path, name: str, value: str, why: str) -> None:
    """The model is not told to be damaged."""
    program = "import sys; from pathlib import Path; from ptpipeline.models.base import prepare_folder as prepare\n"
    program += "prepare('tiny', *map(Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_base(tmp_path / "model")), str(tmp_path)],
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"SettingsError: {name}: {why}" in done.stderr.splitlines()[-1]
