"""A task whose training rows are in PostgreSQL and whose test rows are in S3, through the whole chain."""

import gzip
import uuid
from pathlib import Path

import boto3
import psycopg
import pytest

from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.s3_server import S3Server
from ptpipeline.errors import ServiceUnavailable
from tests.flows.project import Project
from tests.tiny import sentences, write_csv

pytestmark = pytest.mark.servers
SOURCE = """
    train:
      sql:
        url_env: REVIEWS_DB
        query: SELECT text, label FROM reviews ORDER BY id
        version_query: SELECT count(*), max(changed) FROM reviews
    test:
      s3: {url: "URL", endpoint: "ENDPOINT", credentials_env: [REVIEWS_ID, REVIEWS_SECRET]}
      format: csv"""


class Servers:
    """A project and the two places of its rows."""

    def __init__(self, project: Project, database: str, endpoint: str, url: str) -> None:
        self.project, self.database, self.client = project, database, boto3.client("s3", endpoint_url=endpoint)
        self.bucket, _, self.prefix = url.removeprefix("s3://").partition("/")
        source = SOURCE.replace("URL", url).replace("ENDPOINT", endpoint)
        project.edit(f'{{path: "{project.folder / "tiny-sentiment.csv"}", format: csv}}', source)
        project.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15}")
        self.run(
            "CREATE TABLE reviews (id serial PRIMARY KEY, text text, label text, changed timestamptz DEFAULT now())"
        )

    def run(self, statement: str, *values: str) -> None:
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute(statement.encode(), values or None)

    def add(self, *rows: tuple[str, str]) -> None:
        for row in rows:
            self.run("INSERT INTO reviews (text, label) VALUES (%s, %s)", *row)

    def put(self, name: str, rows: list[tuple[str, str]]) -> None:
        body = write_csv(self.project.folder / name, rows).read_bytes()
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}{name}.gz", Body=gzip.compress(body))


@pytest.fixture
def servers(
    postgres: Postgres, s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Servers:
    database = postgres.create_database(f"reviews-{uuid.uuid4().hex}")
    own = {"REVIEWS_DB": database, "REVIEWS_ID": s3_server.access_key, "REVIEWS_SECRET": s3_server.secret_key}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    project = Project(tmp_path, ("tiny-sentiment",))
    return Servers(project, database, s3_server.endpoint, f"s3://{s3_bucket}/{uuid.uuid4().hex}/")


def test_rows_on_servers_go_to_production_and_only_what_changed_runs(servers: Servers) -> None:
    rows, project = sentences(240), servers.project
    servers.add(*rows[:160])
    servers.put("a.csv", rows[160:200])
    servers.put("b.csv", rows[200:230])
    assert (project.run().status, project.trained) == ("promoted", True)
    assert (project.run().status, project.trained) == ("unchanged", False)
    asked = "the answer of version_query, else a digest of the rows, key, ETag and size of each object"
    assert any(f"source unchanged (by {asked})" in line for line in project.lines)
    servers.put("c.csv", rows[230:])
    project.run()
    assert not project.trained
    assert any("test accuracy" in line for line in project.lines)
    servers.add(("the fine film was a good story again", "positive"))
    project.run()
    assert project.trained


def test_a_server_that_is_away_ends_the_run_as_a_matter_of_time(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVIEWS_DB", "postgresql://me:secret@127.0.0.1:9/reviews")
    with pytest.raises(ServiceUnavailable, match="sql:REVIEWS_DB: the database does not answer"):
        servers.project.run()
