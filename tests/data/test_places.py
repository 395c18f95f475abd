"""The rows of a shipped task, put into every kind of place: each gives the same rows."""

import gzip
import json
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.s3_server import S3Server
from ptpipeline.data.sources import read_rows
from tests.data.declared import declared
from tests.hub_server import COMMIT, Hub
from tests.shipped import shipped

pytestmark = pytest.mark.servers
Cells = list[tuple[str | None, str | None]]


@pytest.fixture(scope="module")
def cells() -> Cells:
    _, rows = shipped("movie-sentiment")
    return list(zip(rows.fields["text"], rows.labels, strict=True))


def lines(cells: Cells) -> bytes:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in cells).encode()


def in_files(cells: Cells, folder: Path) -> dict[str, Any]:
    half = len(cells) // 2
    (folder / "a.jsonl").write_bytes(lines(cells[:half]))
    (folder / "b.jsonl").write_bytes(gzip.compress(lines(cells[half:])))
    return {"path": [str(folder / "a.jsonl"), str(folder / "b.jsonl")], "format": "jsonl"}


def in_a_pattern(cells: Cells, folder: Path) -> dict[str, Any]:
    for part in range(3):
        table = pa.table({"text": [text for text, _ in cells], "label": [label for _, label in cells]})
        pq.write_table(table.slice(part * 4000, 4000 if part < 2 else None), folder / f"part-{part}.parquet")
    return {"glob": str(folder / "part-*.parquet"), "format": "parquet"}


def test_files_give_the_same_rows(cells: Cells, tmp_path: Path) -> None:
    for put in (in_files, in_a_pattern):
        check(cells, put(cells, tmp_path), tmp_path)


def test_objects_give_the_same_rows(
    cells: Cells, s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("ROWS_SECRET", s3_server.secret_key)
    prefix, client = uuid.uuid4().hex, boto3.client("s3", endpoint_url=s3_server.endpoint)
    for part in range(3):
        body = gzip.compress(lines(cells[part * 4000 : (part + 1) * 4000 if part < 2 else None]))
        client.put_object(Bucket=s3_bucket, Key=f"{prefix}/{part}.jsonl.gz", Body=body)
    own = {"endpoint": s3_server.endpoint, "credentials_env": ["ROWS_KEY_ID", "ROWS_SECRET"]}
    check(cells, {"s3": {"url": f"s3://{s3_bucket}/{prefix}/", **own}, "format": "jsonl"}, tmp_path)


TABLE = "CREATE TABLE movies (id INTEGER PRIMARY KEY, text TEXT, label TEXT)"
QUERY = "SELECT text, label FROM movies ORDER BY id"


def test_sqlite_gives_the_same_rows(cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(tmp_path / "movies.db") as database:
        database.execute(TABLE)
        database.executemany("INSERT INTO movies (text, label) VALUES (?, ?)", cells)
    database.close()
    monkeypatch.setenv("MOVIES_DB", f"sqlite:///{tmp_path}/movies.db")
    check(cells, {"sql": {"url_env": "MOVIES_DB", "query": QUERY}}, tmp_path)


def test_postgresql_gives_the_same_rows(
    cells: Cells, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.create_database(f"movies-{uuid.uuid4().hex}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE.encode())
        with connection.cursor().copy("COPY movies FROM STDIN") as copy:
            for number, row in enumerate(cells):
                copy.write_row((number, *row))
    monkeypatch.setenv("MOVIES_DB", url)
    check(cells, {"sql": {"url_env": "MOVIES_DB", "query": QUERY}}, tmp_path)


def test_a_hub_gives_the_same_rows(cells: Cells, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    in_a_pattern(cells, tmp_path / "parts")
    files = {f"data/train-{path.name}": path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    hub.put("datasets/lab/movies", **files)
    check(cells, {"hub": "lab/movies", "revision": COMMIT, "split": "train"}, tmp_path)


def check(cells: Cells, source: dict[str, Any], folder: Path) -> None:
    rows = read_rows(declared(source={"path": None, "format": None, **source}), folder / "home")
    read = list(zip(rows.fields["text"], rows.labels, strict=True))
    assert len(read) == len(cells)
    assert (sorted(read, key=str) if "sql" in source else read) == (
        sorted(cells, key=str) if "sql" in source else cells
    )  # a query gives no order
