"""What the doctor says of versions and aliases in MLflow."""

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.prompts import published
from ptpipeline.task.task import Task
from registry.registry import Registry
from registry.repair.doctor import examine

pytestmark = pytest.mark.servers


@pytest.mark.parametrize("alias", ["Champion", "my_best", "7"])
def test_an_alias_that_no_verb_takes_is_to_be_deleted(
    shown: Registry, task: Task, client: MlflowClient, alias: str
) -> None:
    published(shown, task, 1)
    client.set_registered_model_alias(task.name, alias, "1")
    assert [one.mend for one in examine(shown, task.name)] == [
        f"delete the alias {alias} of {task.name} in MLflow; an alias is of lower-case letters, digits and dashes"
    ]
