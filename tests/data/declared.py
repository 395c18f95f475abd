"""Small tasks over local files, for the tests of ingest."""

from pathlib import Path
from typing import Any

from ptpipeline.data.sources import SourceRows
from ptpipeline.task.task import Task

LENIENT = {"rows_per_label": "off"}


def declared(path: Path | str = "rows.csv", **data: Any) -> Task:
    """A task with labels `bad` and `good` over that file; `data` overrides its data section, or template."""
    source = {"path": str(path), "format": "csv", **data.pop("source", {})}
    section = {
        "source": source,
        "text": "text",
        "label": "label",
        "split": {"dev": 0.2, "test": 0.2},
        "checks": LENIENT,
        **data,
    }
    template, labels = section.pop("template", "{text}:"), {"bad": " bad", "good": " good"}
    return Task.model_validate(
        {
            "name": "reviews",
            "base_model": "tiny",
            "data": section,
            "template": template,
            "labels": labels,
            "gate": {"minimum": 0.5},
        }
    )


def generating(path: Path | str = "rows.csv", **data: Any) -> Task:
    """The same that answers with the text of column `answer`."""
    task = declared(path, **data).model_dump(mode="json", exclude_unset=True) | {"generate": {"max_new_tokens": 8}}
    section = {**task["data"], "target": "answer"}
    del section["label"], task["labels"]
    return Task.model_validate(task | {"data": section, "gate": {"metric": "bleu", "minimum": 0.1}})


def rows_of(*pairs: tuple[str | None, Any], groups: list[Any] | None = None) -> SourceRows:
    """Source rows of (text, label) pairs, as a table without lines gives them."""
    labels, texts = [_text(label) for _, label in pairs], [text for text, _ in pairs]
    return SourceRows("rows.csv", {"text": texts}, labels, None if groups is None else [*map(_text, groups)])


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
