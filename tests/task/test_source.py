"""An address of rows is told with what was expected, and no login or secret in it is shown."""

from pathlib import Path

import pytest

from tests.task.test_task import GOOD, message_of


@pytest.mark.parametrize(
    "source",
    [
        "s3: {url: s3://bucket/a.csv, endpoint: 'http://host', credentials_env: [KEY, wJalrXUtnFEMI/K7MDENG]}",
        "sql: {url_env: 'postgresql://me:wJalrXUtnFEMI@host/db', query: SELECT 1}",
    ],
)
def test_a_secret_in_the_place_of_a_variables_name_is_not_shown(tmp_path: Path, source: str) -> None:
    message = message_of(tmp_path, GOOD.replace("path: rows.csv", source))
    assert "_env" in message
    assert "found a value that is not shown, as it may be a secret: expected the name of an environment var" in message
    assert "wJal" not in message


@pytest.mark.parametrize(
    "source",
    [
        "path: 'https://me:wJalrXUtnFEMI@host/rows.csv'",
        "s3: {url: 's3://me:wJalrXUtnFEMI@bucket/rows.csv'}",
        "s3: {url: s3://bucket/a.csv, endpoint: 'http://me:wJalrXUtnFEMI@host', credentials_env: [KEY, SECRET]}",
    ],
)
def test_a_login_in_an_address_is_not_shown(tmp_path: Path, source: str) -> None:
    message = message_of(tmp_path, GOOD.replace("path: rows.csv", source))
    assert "//...@" in message
    assert "wJal" not in message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("s3: {url: bucket/a.csv}", "s3.url: found 'bucket/a.csv': expected s3://BUCKET/KEY of an object"),
        (
            "s3: {url: s3://bucket/a, endpoint: host, credentials_env: [A, B]}",
            "s3.endpoint: found 'host': expected the",
        ),
        ("hub: a/b/c, revision: main, split: train", "data.source.hub: found 'a/b/c': expected a name such as"),
        ("hub: a/b, revision: main, split: train", "data.source.revision: found 'main': expected a commit, 40 hexade"),
        (f"hub: a/b, revision: {'a' * 40}", "`hub` needs the commit as `revision`"),
        (f"hub: a/b, revision: {'a' * 40}, split: 'train[:9]'", "split: found 'train[:9]': expected a plain name"),
        ("sql: {url_env: DB, query: SELECT 1}, format: csv", "`format` is that of files, and not of `sql`: remove it"),
        ("sql: {url_env: PTP_ROWS, query: SELECT 1}", "expected a name that begins with none of AWS_, PTP_, PREFECT_"),
        ("sql: {url_env: DB, query: ''}", "data.source.sql.query: found '': String should have at least 1"),
    ],
)
def test_an_address_of_a_source_is_told_with_what_was_expected(tmp_path: Path, source: str, expected: str) -> None:
    message = message_of(tmp_path, GOOD.replace("path: rows.csv, format: csv", source))
    assert message.startswith(":4: data.source")
    assert expected in message


@pytest.mark.parametrize("sign", ["'\\t'", "tab", "'::'", "'\"'"])
def test_a_delimiter_that_is_no_character_is_told_as_one_writes_it(tmp_path: Path, sign: str) -> None:
    message = message_of(tmp_path, GOOD.replace("format: csv", f"format: csv, delimiter: {sign}"))
    assert 'expected one character, no quote and no line end; a tab is "\\t" in double quotes' in message
