"""What checkpoints cost a training: seconds to write one, against the seconds between two.

One prompt (K = 1) of P virtual tokens trains with AdamW for some steps on the real base, so that there is a state to
save, and its learning curve is as long as that of a whole default recipe. Then its checkpoint is written to the object
store that the settings name (`PTP_STORE`, else a folder below PTP_HOME) some times, each in place of the last: median
of rounds.

    overhead = save_s / interval_s               training waits for a checkpoint, so this is the share of time that it
    takes step_s                                       of the training step beside it, optimizer included, for
    comparison

Letters: K prompts in a gang, P virtual tokens, B rows, T tokens.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.train_step import describe, options, workload
from ptpipeline.data.tokens import EncodedRow, LabelTokens, TaskText
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.settings import Settings, load_settings
from ptpipeline.storage import ObjectStore, open_store
from ptpipeline.storage.keys import checkpoint_key
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Data, Gate, Source, Task
from ptpipeline.tuning.checkpoint import Checkpoint
from ptpipeline.tuning.loop import RECORD_EVERY, Gang, run_gang
from ptpipeline.tuning.member import Job
from ptpipeline.tuning.tracker import NoTracker

KEY = checkpoint_key("benchmark")


def trained(base: FrozenBase, arguments: argparse.Namespace) -> Gang:
    """A gang of one after its steps, with a curve as long as the default recipe's."""
    work = workload(base, arguments.batch, arguments.tokens, arguments.prompt_length)
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
    text = TaskText("benchmark", "{text}", labels, arguments.tokens, lambda text, special: [])
    gang = run_gang(
        base, [Job("benchmark", task, recipe, work.prompt, text, rows, rows[:2])], NoTracker(), lambda line: None
    )
    curve = gang.members[0].curve
    curve += [curve[-1]] * (Tune().steps // RECORD_EVERY - len(curve))
    return gang


def measure(store: ObjectStore, gang: Gang, rounds: int) -> tuple[list[float], int]:
    """Seconds of each save but the first, which creates the object, and the object's bytes; it is removed again."""
    place, seconds = Checkpoint(store, KEY, 0), []
    try:
        for _ in range(rounds + 1):
            started = time.perf_counter()
            place.save(gang.members, gang.clock)
            seconds.append(time.perf_counter() - started)
        return seconds[1:], len(store.read(KEY).body)
    finally:
        place.clear()


def report(
    base: FrozenBase, arguments: argparse.Namespace, gang: Gang, saved: tuple[list[float], int]
) -> dict[str, Any]:
    """The figures under the names that the last line prints."""
    save, interval = statistics.median(saved[0]), Settings.model_fields["checkpoint_seconds"].default
    return {
        "save_s": save,
        "bytes": saved[1],
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
    arguments = options("checkpoint", __doc__, batch=16, tokens=40, prompt_length=100, steps=3, rounds=20).parse_args(
        argv
    )
    settings = load_settings()
    base = load_base(prepare_base(arguments.base, settings), arguments.dtype)
    gang, store = trained(base, arguments), open_store(settings.store, settings.s3_endpoint)
    saved = measure(store, gang, arguments.rounds)
    figures = report(base, arguments, gang, saved)
    print(
        f"checkpoint of {figures['bytes'] / 1000:.0f} kB to {store.url}: median {1000 * figures['save_s']:.1f} "
        f"ms, {1000 * min(saved[0]):.1f} to {1000 * max(saved[0]):.1f} ms"
    )
    print(
        f"every {figures['interval_s']:.0f} s: {100 * figures['overhead']:.3f}% of the time; a training step "
        f"takes {1000 * figures['step_s']:.0f} ms"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
