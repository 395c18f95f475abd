"""How a run over several tasks ends: a table artifact with links, and Failed where a task ended with an error."""

from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.steps import Night


def ended(night: Night, key: str) -> State[Any]:
    """Write the table under `key` and give the run's final state: a failed gate is Completed, an error is Failed."""
    rows = table(night)
    links = [f"- [{row['task']} in MLflow]({row['page']})" for row in rows if row.get("page")]
    create_table_artifact(key=key, table=rows, description="\n".join([f"**{key}**: {len(rows)} tasks", "", *links]))
    if night.errors:
        sentences = "; ".join(f"{task}: {sentence}" for task, sentence in night.errors.items())
        return Failed(message=f"{len(night.errors)} of {len(rows)} tasks failed: {sentences}")
    return Completed(message="; ".join(f"{row['task']}: {row['status']}" for row in rows) or "no tasks")


def table(night: Night) -> list[dict[str, Any]]:
    """One row per task: its outcome, or `failed` with the reason."""
    outcomes = {task: outcome.to_json() for task, outcome in night.outcomes.items()}
    errors = {task: {"task": task, "status": "failed", "reason": sentence} for task, sentence in night.errors.items()}
    return [row for _, row in sorted((outcomes | errors).items())]
