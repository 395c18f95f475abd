"""Folders that are one table as a whole: what writes their rows as one file."""

from itertools import islice
from pathlib import Path

from ptpipeline.foreign import shorten

LOOKED_AT = 10_000  # entries below a folder

_LAKE = (
    "is a table of {}, whose folder also keeps rows that were deleted: write its rows as Parquet by the program that "
    "wrote it, for example by `spark.read.format('{}').load(FOLDER).write.parquet(NEW)`, and name that"
)
_LAKES = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata/*.metadata.json": "Iceberg"}  # by what marks its folder
_SAVED = (
    "is a data set that `datasets` saved: write it as Parquet by: python -c 'import datasets, sys; "
    "datasets.load_from_disk(sys.argv[1]).to_parquet(sys.argv[2])' FOLDER NEW.parquet"
)
_SAVED_SPLITS = (
    "holds data sets that `datasets` saved: write each as Parquet by: python -c 'import datasets, sys; "
    '[rows.to_parquet(f"{sys.argv[2]}/{split}.parquet") for split, rows in '
    "datasets.load_from_disk(sys.argv[1]).items()]' FOLDER NEW"
)
_PARTITIONED = (
    "is a table in parts, whose folders name a column and its value: write it as one file by: python -c 'import sys; "
    "import pyarrow as a, pyarrow.dataset as d, pyarrow.parquet as p; "
    'parts = [part for path in d.dataset(sys.argv[1]).files for part in path.split("/") if "=" in part]; '
    'names = a.schema([(name, a.string()) for name in dict.fromkeys(part.split("=")[0] for part in parts)]); '
    'rows = d.dataset(sys.argv[1], partitioning=d.partitioning(names, flavor="hive")); '
    "p.write_table(rows.to_table(), sys.argv[2])' FOLDER NEW.parquet"
)
_TEXTS = (
    "holds a file for each text, in a folder for each label: write them as JSON Lines by: python -c 'import json, "
    'pathlib, sys; [print(json.dumps({"text": path.read_text(encoding="utf8"), "label": path.parent.name})) for '
    'path in sorted(pathlib.Path(sys.argv[1]).glob("*/*.txt"))]\' FOLDER > NEW.jsonl'
)


def advise_folder(folder: Path) -> str | None:
    """Return what the folder is as a whole, and the command that writes its rows as a file; None if it is no table."""
    if lake := next((lake for mark, lake in _LAKES.items() if next(folder.glob(mark), None)), None):
        return _LAKE.format(lake, lake.lower())
    if (folder / "dataset_dict.json").is_file():
        return _SAVED_SPLITS
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return _SAVED
    below = [one for one in islice(folder.iterdir(), LOOKED_AT) if one.is_dir()]
    if any("=" in one.name for one in below):
        return _PARTITIONED
    if len([one for one in below if next(one.glob("*.txt"), None)]) > 1:
        return _TEXTS
    if within := sorted(one.name for one in below if next(one.glob("*/*.txt"), None)):
        return f"holds folders of texts: name one of them, such as {shorten(within[0])}"
    return None
