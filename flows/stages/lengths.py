"""Whether the rows of a snapshot fit beside the prompt that is to be trained: told before any training, by their places
in the source.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flows.stages.context import Context
from ptpipeline.errors import ContextError, DataError, Transient
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.task.task import Task

if TYPE_CHECKING:
    from ptpipeline.data.rows import Row
    from ptpipeline.data.tokens import TaskText
    from ptpipeline.serving.engine import Engine


def build_text(context: Context, task: Task) -> "TaskText":
    """Return how the task's rows become tokens beside the longest prompt of its recipe.

    Raises ContextError if template or answers leave no room for a text.
    """
    from ptpipeline.data.tokens import check_template
    from ptpipeline.tuning.tune import build_task_text

    longest = max(task.tune.variants(), key=lambda variant: variant.num_virtual_tokens)
    text = build_task_text(context.engine(task.base_model).base, task, longest)
    check_template(text)
    return text


def read_text(engine: "Engine", task: Task, manifest: PromptManifest) -> "TaskText":
    """Return how a stored prompt reads texts; no target is read."""
    from ptpipeline.data.tokens import LabelTokens, TaskText
    from ptpipeline.prompts.placement import build_text_encoder
    from ptpipeline.task.template import read_template

    encode, none = build_text_encoder(engine.base, manifest.placement), LabelTokens((), ())
    limit = manifest.max_input_tokens
    return TaskText(task.name, read_template(manifest), none, limit, encode, too_long=manifest.too_long)


def check_lengths(context: Context, task: Task, snapshot: Snapshot, text: "TaskText", splits: Iterable[Split]) -> None:
    """Report how many rows of these splits are cut.

    Raises ContextError, which names their places in the source, if rows are too long and are not to be cut.
    """
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.data.tokens import is_cut

    long: dict[Split, list[Row]] = {}
    for split in splits:
        rows = load_split(context.registry.store, snapshot, split)
        long[split] = [rows[index] for index in text.find_long(rows)]
    refused = {
        row.id for rows in long.values() for row in rows if not is_cut(text.too_long) or text.is_target_long(row)
    }
    if refused:
        raise ContextError(refuse_long(text, f"task {task.name}", _find_places(context, task, refused)))
    if any(long.values()):
        counts = ", ".join(f"{len(rows)} in {split}" for split, rows in long.items() if rows)
        context.report(f"{task.name}: texts of more than {text.limit} tokens are cut ({text.too_long}): {counts}")


def refuse_long(text: "TaskText", what: str, where: str) -> str:
    """Return the sentence that refuses rows for their length."""
    from ptpipeline.data.tokens import is_cut

    target = f", the target {text.free.limit} (generate.max_new_tokens), and none is cut" if text.free else ""
    ways = "drop" if is_cut(text.too_long) else "drop or truncate_end"
    return (
        f"{what}: too long: {where}; a text may have {text.limit} tokens in its template beside the prompt and the "
        f"answer{target}: shorten them, or set data.too_long to {ways}"
    )


def _find_places(context: Context, task: Task, ids: set[str]) -> str:
    """Return the places of rows in the source, which is read again; their ids if it cannot be read now."""
    from ptpipeline.data.rows import identify_rows
    from ptpipeline.data.sources import read_rows
    from ptpipeline.data.validation import check_rows

    shown = f"row {', '.join(sorted(ids)[:3])}"
    try:
        source = read_rows(task, context.settings.home)
        checked = check_rows(task, source).rows
    except (DataError, Transient):
        return shown
    pairs = zip(checked, identify_rows(checked), strict=True)
    numbers = [row.number for row, identified in pairs if identified.id in ids]
    return f"{source.source}: {source.places.describe(numbers)}" if numbers else shown
