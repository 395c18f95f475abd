"""The tasks on real data can be run as they are, and their rows are what each task is about."""

import csv
import gzip
import json
from pathlib import Path

import pytest

import benchmarks.real_data
from benchmarks.real_data import rows
from benchmarks.real_data.__main__ import TASKS
from ptpipeline.task.folder import load_task

FILES = sorted((Path(benchmarks.real_data.__file__).parent / "tasks").glob("*.yaml"))
APT = Path("/usr/lib/apt/apt-helper")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[rows.Package]:
    """What apt would have fetched: 40 sources of two packages each, in two sections, and one without description."""
    if not APT.exists():
        pytest.skip("apt reads the lists, and is not here")
    folder = tmp_path_factory.mktemp("apt")
    (folder / "lists").mkdir()
    texts, entries = list[str](), ["Package: bare\nSection: games\nDescription-md5: none\n"]
    for number in range(80):
        name, source = f"p{number}", f"s{number // 2}"
        texts.append(
            f"Package: {name}\nDescription-md5: {number}\nDescription-en: title {number}\n"
            f" It does {number}\n and more.\n .\n Second paragraph.\n"
        )
        entries.append(
            f"Package: {name}\nSource: {source} (1.0)\nSection: {('games', 'web')[number % 4 // 2]}\n"
            f"Description-md5: {number}\n"
        )
    (folder / "lists" / "x_main_i18n_Translation-en").write_text("\n".join(texts))
    (folder / "lists" / "x_main_binary-amd64_Packages").write_text("\n".join(entries))
    return rows.read_packages(folder)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_task_file_is_read_as_it_is(path: Path) -> None:
    assert load_task(path).name == path.stem
    assert path.stem in TASKS


def test_a_package_is_its_source_its_synopsis_and_its_description_on_one_line(packages: list[rows.Package]) -> None:
    assert len(packages) == 80
    assert rows.Package("p7", "s3", "web", "title 7", "It does 7 and more. Second paragraph.") in packages


def test_a_title_fits_its_own_description_alone(packages: list[rows.Package], tmp_path: Path) -> None:
    rows.write_matches(packages, tmp_path / "matches.csv")
    found = read(tmp_path / "matches.csv")
    number = [(row["synopsis"].split()[1], row["description"].split()[2], row["fits"]) for row in found]
    assert all((title == text) == (fits == "yes") for title, text, fits in number)
    assert {fits for _, _, fits in number} == {"yes", "no"}


def test_all_packages_of_one_source_are_in_one_split(packages: list[rows.Package], tmp_path: Path) -> None:
    rows.write_sections(packages, tmp_path / "sections.csv")
    parts = dict[int, set[str]]()
    for row in read(tmp_path / "sections.csv"):
        parts.setdefault(int(row["text"].split()[2]) // 2, set()).add(row["part"])
    assert len(parts) == 40
    assert all(len(found) == 1 for found in parts.values())
    assert set[str]().union(*parts.values()) == {"train", "validation", "test"}


def test_rows_of_an_object_are_read_back() -> None:
    lines = gzip.decompress(rows.pack_lines([("a bird", "animal")])).decode()
    assert json.loads(lines) == {"gloss": "a bird", "kind": "animal"}
