"""One member of a gang: its prompt, data order, optimizer state, schedule, early stop and best checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.tokens import EncodedRow, LabelTokens, TaskText
from ptpipeline.errors import PtpError, TrainingError
from ptpipeline.evaluation.metrics import measure
from ptpipeline.models.causal import CausalBase
from ptpipeline.prompts.initialise import initial_prompt
from ptpipeline.prompts.tensors import stored_value
from ptpipeline.records import CurvePoint, Snapshot
from ptpipeline.serving.ranking import Query
from ptpipeline.task import Task, Tune
from ptpipeline.tuning.sampler import batches


class Job(NamedTuple):
    """What one member trains on: the task, its snapshot, and the encoded train and dev rows."""

    task: Task
    snapshot: Snapshot
    text: TaskText
    train: list[EncodedRow]
    dev: list[EncodedRow]

    @property
    def labels(self) -> LabelTokens:
        """The task's labels as tokens."""
        return self.text.labels


def learning_rate(tune: Tune, step: int) -> float:
    """Rate of step 1..steps: linear warm-up, then linear decay to `final_fraction` of the recipe's rate."""
    if step <= tune.warmup_steps:
        return tune.learning_rate * step / tune.warmup_steps
    progress = (step - tune.warmup_steps) / max(1, tune.steps - tune.warmup_steps)
    return tune.learning_rate * (1 - (1 - tune.final_fraction) * progress)


@dataclass
class Member:
    """Mutable training state of one job; `error` ends it, and leaves the others alone."""

    job: Job
    prompt: Tensor
    optimizer: torch.optim.Optimizer
    order: Iterator[list[int]]
    step: int = 0
    best: Tensor | None = None
    best_step: int = 0
    best_dev: float = -1.0
    stale: int = 0
    error: PtpError | None = None
    run: str | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, base: CausalBase, job: Job) -> "Member":
        """A member at step 0."""
        tune = job.task.tune
        prompt = initial_prompt(base, tune).requires_grad_()
        optimizer = torch.optim.AdamW([prompt], lr=tune.learning_rate, weight_decay=tune.weight_decay)
        return cls(job, prompt, optimizer, batches([len(row.ids) for row in job.train], tune.batch_size, tune.seed))

    @property
    def active(self) -> bool:
        """Whether it takes part in the next step."""
        return self.error is None and self.step < self.job.task.tune.steps and not self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether it ended before its last step, because dev had not gained for `patience` evaluations."""
        return self.stale >= self.job.task.tune.patience and self.step < self.job.task.tune.steps

    @property
    def due(self) -> bool:
        """Whether dev is to be evaluated after this step."""
        tune = self.job.task.tune
        return self.error is None and (self.step % tune.eval_every == 0 or self.step == tune.steps)

    def next_rows(self) -> list[tuple[list[int], tuple[int, ...]]]:
        """Text ids and label ids of the next batch."""
        rows = (self.job.train[index] for index in next(self.order))
        return [(row.ids, self.job.labels.ids[row.label]) for row in rows]

    def update(self, loss: float) -> Tensor:
        """One optimizer step from the gradient that lies on the prompt; returns its norm per virtual token [P].

        A loss or gradient that is not finite sets `error` and leaves the prompt as it was.
        """
        tune, gradient = self.job.task.tune, self.prompt.grad
        self.step += 1
        if gradient is None or not torch.isfinite(gradient).all() or not torch.isfinite(torch.tensor(loss)):
            self.error = TrainingError(
                f"task {self.job.task.name}: loss or gradient is not finite at step {self.step} (loss {loss}); lower tune.learning_rate"
            )
            return torch.zeros(len(self.prompt))
        norms: Tensor = gradient.norm(dim=1).cpu()
        torch.nn.utils.clip_grad_norm_([self.prompt], tune.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(tune, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss)
        return norms

    def dev_queries(self, index: int) -> list[Query]:
        """The dev split for ranking, behind prompt `index` of a cache."""
        return [Query(row.ids, self.job.labels, index) for row in self.job.dev]

    def judge(self, stored: Tensor, log_likelihoods: list[Tensor]) -> float:
        """The dev metric of these rankings, made behind the prompt as it would be stored; kept where it is the best so far."""
        names = self.job.labels.names
        predicted = [names[int(scores.argmax())] for scores in log_likelihoods]
        truth = [names[row.label] for row in self.job.dev]
        metric = measure(self.job.task.gate.metric, truth, predicted, names)
        if metric > self.best_dev:
            self.best, self.best_step, self.best_dev, self.stale = stored, self.step, metric, 0
        else:
            self.stale += 1
        return metric

    def stored(self) -> Tensor | None:
        """The prompt of this moment, rounded as it would be stored; None, and `error` is set, where that overflows."""
        try:
            return stored_value(self.prompt, self.job.task.tune.store_dtype)
        except TrainingError as error:
            self.error = TrainingError(f"task {self.job.task.name}, step {self.step}: {error}")
            return None

    def record(self, gradient_norms: Tensor, dev: float | None) -> CurvePoint:
        """A point of the learning curve over the losses since the last one."""
        point = CurvePoint(
            step=self.step,
            loss=sum(self.losses) / len(self.losses),
            learning_rate=learning_rate(self.job.task.tune, self.step),
            dev=dev,
            token_norms=[round(value, 5) for value in self.prompt.detach().norm(dim=1).tolist()],
            token_gradients=[round(value, 8) for value in gradient_norms.tolist()],
        )
        self.curve.append(point)
        self.losses.clear()
        return point
