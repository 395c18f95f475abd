"""A prompt that something else trained, taken in as a candidate (`ptp import`)."""

from pathlib import Path

from flows.stages.chain import Mode, finish
from flows.stages.context import Context
from flows.stages.ingest import ingest
from flows.stages.outcome import Outcome
from flows.stages.train import claim_trained, keep_trained
from ptpipeline.task.task import Task


def adopt(context: Context, task: Task, path: Path, actor: str) -> Outcome:
    """Take a prompt through the stages of a candidate of our own; a repeat registers nothing new.

    Raises what `read_foreign` and the library's `adopt` raise if it is damaged or does not fit task or base model.
    """
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.prompts.peft import read_foreign
    from ptpipeline.tuning.adopt import adopt as convert

    foreign, snapshot = read_foreign(path), ingest(context, task)
    dev = load_split(context.registry.store, snapshot, "dev")
    converted, keys = convert(context.engine(task.base_model).base, task, snapshot, foreign, dev)
    for warning in converted.tuned.warnings:
        context.report(f"{task.name}: {warning}")
    before = (claim_trained(context, task.name, key) for key in keys)
    tuned = next(filter(None, before), None) or keep_trained(context, converted)
    return finish(context, task, tuned, snapshot.digest, Mode(actor=actor))
