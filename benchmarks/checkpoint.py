"""What checkpoints cost a training: seconds to write one, as a share of the seconds between two.

One prompt (K = 1) of P virtual tokens trains with AdamW for a few steps on the real base, so that there is a state to
save; its learning curve is made as long as that of a whole default recipe. Then its checkpoint is written several times
to the object store of the settings (`PTP_STORE`, else a folder below PTP_HOME), each time replacing the last: median of
rounds.

    overhead = save_s / interval_s    training waits while a checkpoint is written, so this is its share of the time
    step_s                            seconds of one training step, optimizer included, for comparison

Letters: K prompts in a gang, P virtual tokens, B rows, T tokens.
"""

import argparse
import json
import secrets
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.train_step import describe, make_parser, make_workload
from ptpipeline.data.tokens import EncodedRow, LabelTokens, TaskText
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.settings import Settings, load_settings
from ptpipeline.storage import ObjectStore, open_store
from ptpipeline.storage.keys import checkpoint_key
from ptpipeline.task.data import Data, Source
from ptpipeline.task.policy import Gate
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Task
from ptpipeline.task.template import parse_template
from ptpipeline.tuning.checkpoint import Checkpoint
from ptpipeline.tuning.loop import RECORD_EVERY, Gang, run_gang
from ptpipeline.tuning.member import Job
from ptpipeline.tuning.tracker import NoTracker

KEY = checkpoint_key("benchmark")


def train(base: FrozenBase, arguments: argparse.Namespace) -> Gang:
    """Train a gang of one; return it with a curve as long as the default recipe's."""
    work = make_workload(base, arguments.batch, arguments.tokens, arguments.prompt_length)
    recipe = Tune(
        num_virtual_tokens=arguments.prompt_length,
        steps=arguments.steps,
        batch_size=arguments.batch,
        eval_every=arguments.steps,
    )
    labels = LabelTokens(("no", "yes"), ((int(work.labels[0]),), (int(work.labels[1]),)))
    rows = [EncodedRow(str(i), ids, labels.ids[i % 2], labels.names[i % 2]) for i, ids in enumerate(work.ids.tolist())]
    source = Data(source=Source(path="none.csv", format="csv"), text="text", label="label")
    task = Task(
        name="benchmark",
        base_model=base.ref.name,
        data=source,
        template="{text}",
        labels={"no": "no", "yes": "yes"},
        tune=recipe,
        gate=Gate(minimum=0.5),
    )
    text = TaskText("benchmark", parse_template("{text}"), labels, arguments.tokens, lambda text, special: [])
    gang = run_gang(
        base, [Job("benchmark", task, recipe, work.prompt, text, rows, rows[:2])], NoTracker(), lambda line: None
    )
    curve = gang.members[0].curve
    curve += [curve[-1]] * (Tune().steps // RECORD_EVERY - len(curve))
    return gang


class Saved(NamedTuple):
    """Seconds of each save, and the object's size."""

    seconds: list[float]
    bytes: int


def measure(store: ObjectStore, gang: Gang, rounds: int) -> Saved:
    """Time `rounds` saves after a first one, which creates the object; remove the object again."""
    checkpoint, seconds = Checkpoint(store, KEY, 0, secrets.token_bytes(32)), []
    try:
        for _ in range(rounds + 1):
            started = time.perf_counter()
            checkpoint.save(gang.members, gang.clock)
            seconds.append(time.perf_counter() - started)
        return Saved(seconds[1:], len(store.read(KEY).body))
    finally:
        checkpoint.clear()


def report(base: FrozenBase, arguments: argparse.Namespace, gang: Gang, saved: Saved) -> dict[str, Any]:
    """Return the figures under the names that the last line prints."""
    save, interval = statistics.median(saved.seconds), Settings.model_fields["checkpoint_seconds"].default
    return {
        "save_s": save,
        "bytes": saved.bytes,
        "interval_s": interval,
        "overhead": save / interval,
        "step_s": gang.clock.training / gang.clock.steps,
        "batch": arguments.batch,
        "tokens": arguments.tokens,
        "prompt_length": arguments.prompt_length,
        "rounds": arguments.rounds,
        **describe(base),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print lines for people, then the figures as one JSON object on the last line."""
    arguments = make_parser(
        "checkpoint", __doc__, batch=16, tokens=40, prompt_length=100, steps=3, rounds=20
    ).parse_args(argv)
    settings = load_settings()
    base = load_base(prepare_base(arguments.base, settings), arguments.dtype)
    gang, store = train(base, arguments), open_store(settings.store, settings.s3_endpoint)
    saved = measure(store, gang, arguments.rounds)
    figures = report(base, arguments, gang, saved)
    print(
        f"checkpoint of {figures['bytes'] / 1000:.0f} kB to {store.url}: median {1000 * figures['save_s']:.1f} "
        f"ms, {1000 * min(saved.seconds):.1f} to {1000 * max(saved.seconds):.1f} ms"
    )
    print(
        f"every {figures['interval_s']:.0f} s: {100 * figures['overhead']:.3f}% of the time; a training step "
        f"takes {1000 * figures['step_s']:.0f} ms"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
