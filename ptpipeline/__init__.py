"""ptpipeline: one frozen language model, one soft prompt of a few kilobytes per task.

>>> import ptpipeline
>>> ptpipeline.load("movie-sentiment@production").predict(["A gem."])  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptpipeline.serving.predictor import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load` on first use, so that importing a part of the library never imports torch."""
    if name == "load":
        from ptpipeline.serving.predictor import load

        return load
    raise AttributeError(f"module 'ptpipeline' has no attribute {name!r}")
