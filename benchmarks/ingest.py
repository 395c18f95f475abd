"""What it takes to ingest a large file: rows per second and peak memory, with every check and the search for near
duplicates.

Each format's file is generated (words drawn as natural text repeats them; one row in 20 is the row before it with one
more word) and ingested by a process of its own, into a store that is a folder. The peak is that process's resident
memory, with Python and all libraries. Beside other work, only the processor seconds say how fast it is.
"""

import argparse
import csv
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.fixtures.children import end_with_parent
from ptpipeline.data.snapshot import take_snapshot
from ptpipeline.progress import Lines, watch
from ptpipeline.storage import FolderStore
from ptpipeline.task.data import Data, Source
from ptpipeline.task.policy import Gate
from ptpipeline.task.task import Task

FORMATS = ("csv", "jsonl", "parquet")
WORDS = 50_000
LABELS = ("negative", "positive")


def generate(rows: int, size: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield texts of about `size` bytes with their labels."""
    dice = random.Random(seed)
    letters = "etaoinshrdlucmfwygpbvk"
    words = ["".join(dice.choices(letters, k=dice.randint(2, 10))) for _ in range(WORDS)]
    weights = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))  # Zipf's law
    last = ""
    for number in range(rows):
        if number % 20 == 19:
            text = f"{last} {dice.choice(words)}"
        else:
            text = " ".join(dice.choices(words, cum_weights=weights, k=size // 6))[:size]
        last = text
        yield text, LABELS[number % 2]


def write(path: Path, rows: int, size: int) -> None:
    """Write the rows in the format that the file's name ends with."""
    end_with_parent()
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts, labels = zip(*generate(rows, size), strict=True)
        pq.write_table(pa.table({"text": list(texts), "label": list(labels)}), path)
        return
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in generate(rows, size))
        else:
            csv.writer(file).writerows([("text", "label"), *generate(rows, size)])


def measure(path: Path, told: Connection) -> None:
    """Ingest the file and tell the figures."""
    end_with_parent()
    task = Task(
        name="large",
        base_model="none",
        data=Data(source=Source(path=str(path), format=path.suffix[1:]), text="text", label="label"),
        template="{text}",
        labels={label: f" {label}" for label in LABELS},
        gate=Gate(metric="accuracy", minimum=0),
    )
    began, worked = time.perf_counter(), time.process_time()
    with watch("ingest", Lines(lambda line: print(line, flush=True))):
        snapshot = take_snapshot(task, FolderStore(path.parent / f"store-{path.suffix[1:]}"), path.parent)
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    kept = sum(split.rows for split in snapshot.splits().values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    checks = {check.name: check.count for check in snapshot.checks if check.count}
    figures = {"seconds": round(seconds, 1), "processor_seconds": round(worked, 1), "peak_mib": round(peak)}
    told.send({**figures, "rows_kept": kept, "checks": checks})


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per format, and all figures as JSON on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=200, help="of each text")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this one; may be repeated")
    arguments = parser.parse_args(argv)
    figures: dict[str, Any] = {"rows": arguments.rows, "bytes": arguments.bytes}
    processes = multiprocessing.get_context("spawn")  # a process that has not generated the rows
    with tempfile.TemporaryDirectory(prefix="ptp-ingest-") as folder:
        for form in arguments.format or FORMATS:
            path = Path(folder, f"rows.{form}")
            generator = processes.Process(target=write, args=(path, arguments.rows, arguments.bytes))
            generator.start()
            generator.join()
            ours, theirs = processes.Pipe(duplex=False)
            child = processes.Process(target=measure, args=(path, theirs))
            child.start()
            theirs.close()
            try:
                figures[form] = ours.recv()
            except EOFError:
                child.join()
                raise SystemExit(f"{form}: the process that ingests ended with {child.exitcode}") from None
            figures[form]["rows_per_second"] = round(arguments.rows / figures[form]["seconds"])
            print(f"{form}: {figures[form]}", flush=True)
            path.unlink()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
