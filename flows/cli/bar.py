"""A progress bar on the terminal, below the lines that are printed meanwhile."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from flows.cli.terminal import escape
from ptpipeline.progress import Standing


class Bar:
    """One bar for the phase that counts at the moment; it goes away with the work."""

    interval = 0.5  # seconds between two looks at the work

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._bar = TaskID(0)

    def show(self, standing: Standing) -> None:
        """Draw the bar as far as the phase has come; a bar that runs to and fro if nothing is counted."""
        if self._progress is None:
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
            self._progress = Progress(
                *columns,
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # else what is printed into a file would go to the terminal
            )
            self._bar = self._progress.add_task("", total=None)
            self._progress.start()
        text = escape(str(standing))
        self._progress.update(self._bar, description=text, completed=standing.done, total=standing.total or None)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
