"""The predictor hashes the base while it imports what computes, so its own module imports none of that."""

import subprocess
import sys


def test_importing_the_predictor_imports_no_torch() -> None:
    code = "import sys, ptpipeline.serving.predictor; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
