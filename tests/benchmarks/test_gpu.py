"""The GPU's script on the CPU: what it imports, and that it tells exact passes from others."""

import subprocess
import sys
from typing import Any

import pytest

from benchmarks import gpu
from ptpipeline.models import kernels


def test_it_imports_nothing_that_a_bare_machine_lacks() -> None:
    code = (
        "import sys, benchmarks.gpu; "
        "print([name for name in ('pydantic', 'rfc8785', 'ruamel', 'prefect', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exact_passes_differ_by_what_transformers_rounds() -> None:
    assert gpu.measure_errors("random-gemma2") < gpu.MOST_ERROR


def test_a_wrong_gradient_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.softmax_backward

    def wrong(*given: Any) -> Any:
        return right(*given) * 1.01

    monkeypatch.setattr(kernels, "softmax_backward", wrong)
    assert gpu.measure_errors("random-llama") > gpu.MOST_ERROR
