"""Four tasks on real data, each from its sources to a verdict, as a person runs them: `ptp run`, one behind the other.

Two columns (does this title fit this description), given splits (the section of a Debian package), a chat (spam among
text messages), and rows on an S3 server and in PostgreSQL (WordNet). The rows come from Debian's archive, by apt, and
from a pinned package. Prints a line per task as it ends, and on the last one all figures as JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3
import psycopg

from benchmarks.fixtures.postgres import Postgres, running_postgres
from benchmarks.fixtures.s3_server import S3Server, running_s3
from benchmarks.real_data import rows

TASKS = ("sms-spam", "synopsis-fits", "debian-section", "noun-kind")
ENDPOINT = "http://127.0.0.1:8333"  # what the task file names, in whose place the server of this run stands
_HERE = Path(__file__).parent
_PARTS = 3  # objects below the prefix


def main() -> None:
    """Run the tasks and print the figures as JSON on the last line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--folder", type=Path, help="keeps rows, base and store for another run")
    asked.add_argument("--task", choices=TASKS, action="append", help="only this one, or these")
    options = asked.parse_args()
    with (
        tempfile.TemporaryDirectory() as made,
        running_s3(Path(made) / "s3") as s3,
        running_postgres() as postgres,
    ):
        folder = (options.folder or Path(made) / "run").absolute()
        folder.mkdir(exist_ok=True)
        environment = prepare(folder, s3, postgres)
        print(json.dumps([run(name, folder, environment) for name in options.task or TASKS]))


def prepare(folder: Path, s3: S3Server, postgres: Postgres) -> dict[str, str]:
    """Make the rows, where each task looks for them, and the task files; return the environment to run them in."""
    packages = rows.read_packages(folder)
    rows.write_matches(packages, folder / "matches.csv")
    rows.write_sections(packages, folder / "sections.csv")
    glosses = rows.read_glosses(folder)[: rows.MOST]
    put_objects(glosses[: rows.MOST * 3 // 4], s3)
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    shutil.copy(_HERE.parents[1] / "tasks" / "base_models.yaml", tasks)
    for path in (_HERE / "tasks").glob("*.yaml"):
        (tasks / path.name).write_text(path.read_text().replace(ENDPOINT, s3.endpoint))
    return {
        **os.environ,
        "PTP_HOME": str(folder / "home"),
        "PTP_TASKS": str(tasks),
        "GLOSSES_KEY_ID": s3.access_key,
        "GLOSSES_SECRET_KEY": s3.secret_key,
        "GLOSSES_DB": fill_table(glosses[rows.MOST * 3 // 4 :], postgres),
    }


def put_objects(glosses: list[tuple[str, str]], s3: S3Server) -> None:
    """Store rows as JSON Lines under gzip, several objects below one prefix."""
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="glosses")
    for part in range(_PARTS):
        body = rows.pack_lines(glosses[part::_PARTS])
        client.put_object(Bucket="glosses", Key=f"train/part-{part}.jsonl.gz", Body=body)


def fill_table(glosses: list[tuple[str, str]], postgres: Postgres) -> str:
    """Store rows in a table of a database of their own; return its address."""
    address = postgres.create_database("glosses")
    with psycopg.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE glosses (id integer PRIMARY KEY, gloss text, kind text)")
        cursor.executemany(
            "INSERT INTO glosses VALUES (%s, %s, %s)", [(number, *row) for number, row in enumerate(glosses)]
        )
    return address


def run(name: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a task, then read what its version's report says; raise RuntimeError if it came to no verdict."""
    began = time.monotonic()
    ran = _call(["run", name, "--json"], folder, environment)
    outcome = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode in (0, 4) else None  # 4: the gate refused it
    if outcome is None:
        raise RuntimeError(f"ptp run {name} ended with {ran.returncode}, see above")
    seconds = round(time.monotonic() - began)
    shown = json.loads(_call(["show", f"{name}@{outcome['version']}", "--json"], folder, environment).stdout)
    report, training = shown["report"], shown["training"]
    found = {
        "task": name,
        "status": outcome["status"],
        "rows": report["rows"],
        **{who: _round(report[who]) for who in ("prompt", "zero_shot", "hard_prompt", "majority") if report[who]},
        "steps": training["steps"],
        "training_seconds": round(training["seconds"]),
        "seconds": seconds,
        "compute_dtype": report["compute_dtype"],
    }
    print(json.dumps(found), flush=True)
    return found


def _call(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)


def _round(scores: dict[str, Any]) -> dict[str, float]:
    return {metric: round(scores[metric], 3) for metric in ("accuracy", "macro_f1")}


if __name__ == "__main__":
    main()
