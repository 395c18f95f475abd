"""One member of a gang: its parameterisation, data order, optimizer state, schedule, early stop and best prompt.

Letters: P virtual tokens, H width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ptpipeline.data.tokens import EncodedRow, TaskText
from ptpipeline.errors import PtpError, TrainingError
from ptpipeline.evaluation.metrics import measure
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import SoftPrompt, list_tensors
from ptpipeline.prompts.parameterise import Parameterisation, parameterise
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import round_to_stored
from ptpipeline.records.prompts import Cost, CurvePoint, Dropped
from ptpipeline.serving.answers import Opening
from ptpipeline.serving.ranking import Query
from ptpipeline.task.recipe import Rung, Tune
from ptpipeline.task.task import Task
from ptpipeline.tuning.clock import Reading
from ptpipeline.tuning.sampler import sample_batches

Rows = list[tuple[list[int], tuple[int, ...]]]  # text ids and target ids of each row


class Pull(NamedTuple):
    """A penalty on the distance to embeddings [P, H], such as a text's: `gamma` times the mean squared distance.

    The mean is over virtual tokens (Khashabi et al. 2022). The effect of a gamma depends on the size of the base's
    embeddings.
    """

    towards: Tensor
    gamma: float

    def compute_penalty(self, prompt: SoftPrompt) -> Tensor:
        """Return the penalty [], with gradient, of a prompt of embeddings, which may stand behind BOS."""
        embeddings = list_tensors(prompt)[0][-len(self.towards) :]  # [P, H]
        penalty: Tensor = self.gamma * (embeddings - self.towards).pow(2).sum(1).mean()
        return penalty


class Job(NamedTuple):
    """What one member trains: a recipe from a first prompt, on the encoded train and dev rows of a task.

    `name` is unique within the gang: the task's name, or that of one trial of the task. A `teacher` is distilled into
    the prompt. Jobs with the same `shared` prompt learn it together, each with a rank-one factor of its own. A `pull`
    adds its penalty to the loss. At the `rungs` the jobs of a task that have them are compared, and the worst end.
    """

    name: str
    task: Task
    tune: Tune
    initial: SoftPrompt
    text: TaskText
    train: list[EncodedRow]
    dev: list[EncodedRow]
    teacher: SoftPrompt | None = None
    shared: Parameter | None = None
    pull: Pull | None = None
    rungs: tuple[Rung, ...] = ()


def compute_learning_rate(tune: Tune, step: int) -> float:
    """Return the rate of step 1..steps: linear warm-up, then constant or linear decay.

    The decay ends at `final_fraction` of the recipe's rate.
    """
    if step <= tune.warmup_steps:
        return tune.learning_rate * step / tune.warmup_steps
    if tune.schedule == "constant":
        return tune.learning_rate
    progress = (step - tune.warmup_steps) / max(1, tune.steps - tune.warmup_steps)
    return tune.learning_rate * (1 - (1 - tune.final_fraction) * progress)


def build_optimizer(tune: Tune, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer.

    Adafactor is set as in Lester et al. 2021: fixed rate, no scaling by the parameter, decay 0.8. It is transformers'
    own: torch's couples the tensors that it steps together.
    """
    if tune.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=tune.learning_rate, weight_decay=tune.weight_decay)
    from transformers.optimization import Adafactor

    adafactor: torch.optim.Optimizer = Adafactor(
        parameters,
        lr=tune.learning_rate,
        weight_decay=tune.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )
    return adafactor


@dataclass
class Member:
    """Mutable training state of one job; `error` ends it, and leaves the others of the gang alone.

    `dropped` ends it too, because its rivals are ahead. `tokens`, `seconds` and `processor_seconds` are what it cost.
    """

    job: Job
    parameterisation: Parameterisation
    optimizer: torch.optim.Optimizer
    order: Iterator[list[int]]
    step: int = 0
    best: SoftPrompt | None = None
    best_step: int = 0
    best_dev: float = -1.0
    stale: int = 0
    error: PtpError | None = None
    dropped: Dropped | None = None
    tokens: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    run: str | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradient_norms: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(cls, job: Job) -> "Member":
        """Return a member at step 0."""
        parameterisation = parameterise(job.tune, job.initial, job.shared)
        optimizer = build_optimizer(job.tune, list(parameterisation.parameters()))
        order = sample_batches([len(row.ids) for row in job.train], job.tune.batch_size, job.tune.seed)
        return cls(job, parameterisation, optimizer, order)

    @classmethod
    def start_gang(cls, jobs: Sequence[Job]) -> list["Member"]:
        """Return members of these jobs at step 0; one optimizer steps all those with the same shared prompt."""
        members = [cls.of(job) for job in jobs]
        for shared in {id(job.shared): job.shared for job in jobs if job.shared is not None}.values():
            together = [member for member in members if member.job.shared is shared]
            parameters = {id(p): p for member in together for p in member.parameterisation.parameters()}
            optimizer = build_optimizer(together[0].job.tune, list(parameters.values()))
            for member in together:
                member.optimizer = optimizer
        return members

    @property
    def active(self) -> bool:
        """Whether it has steps to take."""
        ended = self.error is not None or self.dropped is not None or self.stopped_early
        return not ended and self.step < self.job.tune.steps

    @property
    def stopped_early(self) -> bool:
        """Whether it ended before its last step, because dev had not gained for `patience` evaluations."""
        return self.stale >= self.job.tune.patience and self.step < self.job.tune.steps

    @property
    def due(self) -> bool:
        """Whether dev is to be evaluated after this step."""
        tune = self.job.tune
        return self.error is None and (self.step % tune.eval_every == 0 or self.step == tune.steps)

    @property
    def cost(self) -> Cost:
        """What its training took so far."""
        rounded = round(self.seconds, 3), round(self.processor_seconds, 3)
        return Cost(tokens=self.tokens, seconds=rounded[0], processor_seconds=rounded[1])

    def charge(self, spent: Reading, share: float) -> None:
        """Add its share of what the gang spent together."""
        self.seconds += spent.seconds * share
        self.processor_seconds += spent.processor_seconds * share

    def require_best(self) -> SoftPrompt:
        """Return the best prompt; raise the error that ended the member, or TrainingError if it never trained."""
        if self.error is not None or self.best is None:
            raise self.error or TrainingError(f"task {self.job.name}: nothing was trained")
        return self.best

    def build_prompt(self, base: FrozenBase) -> SoftPrompt:
        """Return what stands in front of its rows now, with gradient to its parameters."""
        return place_prompt(base, self.parameterisation.build_prompt(), self.job.tune.placement)

    def take_rows(self) -> Rows:
        """Return text ids and target ids of the next batch."""
        return [(row.ids, row.target) for row in (self.job.train[index] for index in next(self.order))]

    def accumulate(self, loss: float, prompt: SoftPrompt, gradients: Sequence[Tensor | None]) -> None:
        """Let the gradient on each tensor of `prompt`, made by `build_prompt`, flow back to the parameters.

        A loss or gradient that is not finite sets `error` and leaves the parameters as they were.
        """
        self.step += 1
        penalties = [self.job.pull.compute_penalty(prompt)] if self.job.pull else []
        loss += sum(penalty.item() for penalty in penalties)
        given = [gradient for gradient in gradients if gradient is not None]
        complete = len(given) == len(gradients) and all(torch.isfinite(gradient).all() for gradient in given)
        if not complete or not torch.isfinite(torch.tensor(loss)):
            self._end_diverged(loss)
            return
        torch.autograd.backward([*list_tensors(prompt), *penalties], [*given, *map(torch.ones_like, penalties)])
        self.losses.append(loss)
        count = self.job.tune.num_virtual_tokens
        self.gradient_norms = compute_token_norms(given)[-count:]  # [P], without BOS in front of the prompt

    def apply(self) -> None:
        """Take one optimizer step from the accumulated gradients, clipped.

        If their norm is not finite, `error` is set and nothing moves.
        """
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        total = torch.nn.utils.clip_grad_norm_(parameters, self.job.tune.max_grad_norm)
        if torch.isfinite(total):
            for group in self.optimizer.param_groups:
                group["lr"] = compute_learning_rate(self.job.tune, self.step)
            try:
                self.optimizer.step()
            except RuntimeError as error:  # a rate beyond what the parameters' type can hold
                self.error = TrainingError(
                    f"task {self.job.name}: step {self.step} failed: {error}; lower tune.learning_rate"
                )
        else:
            self._end_diverged(self.losses[-1])
        self.optimizer.zero_grad()

    def _end_diverged(self, loss: float) -> None:
        fix = "lower tune.learning_rate"
        if self.step == 1:  # nothing moved yet
            fix = "check the weights of the base, compute in float32 (PTP_DTYPE), or take another tune.init"
        self.error = TrainingError(
            f"task {self.job.name}: loss or gradient is not finite at step {self.step} (loss {loss}); {fix}"
        )

    def build_dev_requests(self, prompt: int) -> list[Query | Opening]:
        """Return the dev split behind that prompt of a cache: labels to rank, or texts to continue."""
        labels, free = self.job.text.labels, self.job.text.free
        return [
            Opening(row.ids, free.limit, prompt) if free else Query(row.ids, labels, prompt) for row in self.job.dev
        ]

    def judge(self, stored: SoftPrompt, answers: Sequence[str]) -> float:
        """Return the dev metric of these answers behind the prompt as it would be stored; keep the prompt if best."""
        labels = [row.label for row in self.job.dev]
        metric = measure(self.job.task.gate.metric, labels, answers, self.job.text.labels.names)
        if self.best is None or metric > self.best_dev:
            self.best, self.best_step, self.best_dev, self.stale = stored, self.step, metric, 0
        else:
            self.stale += 1
        return metric

    def round_to_stored(self) -> SoftPrompt | None:
        """Return the prompt of this moment as it would be stored; if that overflows, set `error` and return None."""
        try:
            return round_to_stored(self.parameterisation.build_prompt(), self.job.tune.store_dtype)
        except TrainingError as error:
            self.error = TrainingError(f"task {self.job.name}, step {self.step}: {error}")
            return None

    def record(self, dev: float | None) -> CurvePoint:
        """Add a point to the learning curve, over the losses since the last one, and return it."""
        with torch.no_grad():
            norms = compute_token_norms(list_tensors(self.parameterisation.build_prompt()))
        point = CurvePoint(
            step=self.step,
            loss=sum(self.losses) / len(self.losses),
            learning_rate=compute_learning_rate(self.job.tune, self.step),
            dev=dev,
            token_norms=[round(value, 5) for value in norms.tolist()],
            token_gradients=[round(value, 8) for value in self.gradient_norms.tolist()],
        )
        self.curve.append(point)
        self.losses.clear()
        return point


def compute_token_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each virtual token [P], over all of a prompt's tensors [..., P, width]."""
    norms: Tensor = torch.cat([tensor.transpose(0, -2).flatten(1) for tensor in tensors], 1).norm(dim=1)
    return norms.cpu()
