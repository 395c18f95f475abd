"""Follows a training in MLflow while it runs: one run per gang member in the experiment `ptpipeline/<task>`."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ptpipeline.errors import PtpError, ServiceUnavailable
from ptpipeline.progress import Standing
from ptpipeline.records.base import read_clock
from ptpipeline.records.prompts import CurvePoint
from ptpipeline.tuning.tracker import RunStatus
from registry.mlflow.client import connect, translated_errors
from registry.mlflow.write import curve_metrics, ensure_experiment, standing_metric

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAUSE_SECONDS = 60.0  # behind a failure: a server that hangs takes 10 s for each request, and a gang has thousands
FLOW_RUN_TAG, NOTE_TAG = "ptp.flow_run", "mlflow.note.content"  # the latter is shown as Markdown

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class Tracking:
    """A Tracker that writes to an MLflow server; it logs the first failure and counts in `lost` what it could not
    write. If MLflow does not answer, it writes nothing for a minute but the ends of runs.
    """

    def __init__(self, uri: str, flow_run: str | None = None) -> None:
        self.uri = uri
        self._flow_run = flow_run  # the address of its page in Prefect
        self.lost = 0
        self._paused_until = 0.0  # by time.monotonic
        self._open: dict[str, None] = {}  # runs that were started and have not ended, in order
        self._client: MlflowClient = connect(uri)

    def start(
        self, task: str, params: Mapping[str, str | int | float], tags: Mapping[str, str], run: str | None = None
    ) -> str | None:
        """Begin a run, or continue `run`; returns its id, None if MLflow does not answer: then its points are dropped,
        and the ledger keeps the curve.
        """
        known = run
        if known is not None:
            self._write(f"that run {known} goes on", lambda: self._client.update_run(known, "RUNNING"))
        else:
            run = self._write(f"the training of {task}", lambda: self._begin(task, params, tags))
        if run is not None:
            self._open[run] = None
        return run

    def _begin(self, task: str, params: Mapping[str, str | int | float], tags: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        experiment = ensure_experiment(self._client, task.partition("/")[0])
        name = f"{task} {read_clock():%Y-%m-%d %H:%M}"
        made = self._client.create_run(experiment, tags={**tags, **self._name_flow_run()}, run_name=name)
        run = str(made.info.run_id)
        self._client.log_batch(run, params=[Param(name, str(value)) for name, value in params.items()])
        return run

    def log_point(self, run: str | None, point: CurvePoint) -> None:
        """Log loss, learning rate, dev metric, mean norm and gradient of the virtual tokens, at the point's step."""
        if run is not None:
            what = f"step {point.step} of run {run}"
            self._write(what, lambda: self._client.log_batch(run, metrics=curve_metrics(point)))

    def log_standing(self, run: str | None, standing: Standing) -> None:
        """Log the share that is done of the phase, as `progress/PHASE`, in a run or in all that are open."""
        runs = [run] if run else list(self._open)
        for own in runs if standing.total else []:
            log_metric = partial(self._client.log_batch, own, metrics=[standing_metric(standing)])
            self._write(f"how far {standing.phase} has come", log_metric)

    def finish(self, run: str | None, status: RunStatus) -> None:
        """End the run."""
        if run is not None:
            self._open.pop(run, None)
            self._paused_until = 0.0
            self._write(f"the end of run {run}", lambda: self._client.set_terminated(run, status))

    def _name_flow_run(self) -> dict[str, str]:
        """Return the tags that lead from a run's page to that of the flow run that trains."""
        if self._flow_run is None:
            return {}
        return {FLOW_RUN_TAG: self._flow_run, NOTE_TAG: f"Trained by [this flow run]({self._flow_run}) in Prefect"}

    def _write(self, what: str, request: Callable[[], _Answer]) -> _Answer | None:
        """Return the answer of MLflow; None if it fails, or did not answer a short time ago."""
        if time.monotonic() < self._paused_until:
            self.lost += 1
            return None
        try:
            with translated_errors(self.uri):
                return request()
        except PtpError as error:
            self.lost += 1
            if isinstance(error, ServiceUnavailable):
                self._paused_until = time.monotonic() + PAUSE_SECONDS
            if self.lost == 1:
                log.warning(
                    "MLflow does not show %s and maybe more of this training; the training continues: %s", what, error
                )
        return None
