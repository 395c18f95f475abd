"""The Waywardness experiment: does a prompt still solve its task while its tokens lie where a text that has nothing to
do with it lies?

Khashabi et al. 2022: the loss gets a pull towards the embeddings of an unrelated text. Where the prompt lands on that
text and is about as good, its nearest words cannot have told what it does.

Letters: P virtual tokens, H width, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ptpipeline.data.tokens import EncodedRow
from ptpipeline.errors import DataError, TrainingError
from ptpipeline.evaluation.metrics import measure
from ptpipeline.evaluation.paired import Asked, difference, mean_difference
from ptpipeline.evaluation.texts import TextRows
from ptpipeline.models.frozen import FrozenBase, KeyValues, SoftPrompt, count_virtual_tokens, list_tensors
from ptpipeline.prompts.initialise import tokenize_text
from ptpipeline.prompts.interpretation import Measure, Pulled, Wayward
from ptpipeline.prompts.neighbours import embed_vocabulary, find_nearest, make_token_printer
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import round_to_stored
from ptpipeline.records import PairedDifference, Snapshot, TextMetric
from ptpipeline.serving.answers import answer
from ptpipeline.storage import ObjectStore
from ptpipeline.task.task import Task
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Job, Member, Pull
from ptpipeline.tuning.start import load_start
from ptpipeline.tuning.tracker import NoTracker
from ptpipeline.tuning.tune import build_job

log = logging.getLogger(__name__)

GAMMAS = (
    0.1,
    1.0,
    10.0,
)  # on SmolLM2 in 120 steps nothing lands at the .01 of google-research/prompt-tuning, and all tokens do at 1


class Aim(NamedTuple):
    """The text to pull towards, and how strongly: one prompt trains for each gamma."""

    text: str
    gammas: Sequence[float] = GAMMAS


def build_plain_job(base: FrozenBase, task: Task, snapshot: Snapshot, store: ObjectStore) -> Job:
    """What the task trains, without a pull; of a search or an ensemble the first recipe."""
    return build_job(
        base, task, task.tune.variants()[0], snapshot, store, load_start(base, task, store, log.info).prompt
    )


def run_wayward(
    base: FrozenBase, job: Job, test: Sequence[EncodedRow], aim: Aim, report: Callable[[str], None] = log.info
) -> Wayward:
    """Train the job once as it is and once for each gamma, in one gang from one start on the same batches; all to the
    last step.

    What is read is the stored form of the last step, of the plain prompt too: the step that is best on dev may lie
    before the prompt has arrived. Raises DataError for a prefix, a text without tokens or gammas that are none, and the
    error of the first prompt that could not be trained.
    """
    _check(base, job, aim)
    ids = tokenize_text(base, aim.text, count_virtual_tokens(job.initial))
    goal = base.embed(ids).detach().to("cpu", list_tensors(job.initial)[0].dtype)
    plain = job._replace(
        tune=job.tune.model_copy(update={"eval_every": job.tune.steps})
    )  # one look at dev: nothing stops early, the best is the last
    jobs = [plain, *(plain._replace(name=f"{job.name}/pull {gamma!r}", pull=Pull(goal, gamma)) for gamma in aim.gammas)]
    members = run_gang(base, jobs, NoTracker(), report).members
    prompts = [*map(_trained, members), round_to_stored(goal, job.tune.store_dtype)]
    first, *others, bare = _answered(base, members[0], prompts, test)
    reading = _Reading(job, test, ids, embed_vocabulary(base))
    show = make_token_printer(base)
    return Wayward(
        task=job.task.name,
        text=aim.text,
        tokens=[show(token) for token in ids.tolist()],
        metric=job.task.gate.metric,
        steps=job.tune.steps,
        test_rows=len(test),
        text_test=reading.metric(bare),
        text_landed=reading.landed(prompts[-1]),
        plain=reading.of(members[0], first),
        pulled=[reading.of(member, found, first) for member, found in zip(members[1:], others, strict=True)],
    )


def _check(base: FrozenBase, job: Job, aim: Aim) -> None:
    if isinstance(job.initial, KeyValues):
        raise DataError(
            f"task {job.task.name}: a prefix has no embeddings to pull towards a text; take a task whose "
            "method is another"
        )
    if not base.encode(aim.text, False):
        raise DataError(
            f"the text to pull towards, {aim.text!r}, has no tokens for {base.ref.name}; give a text with words"
        )
    if (
        not aim.gammas
        or len(set(aim.gammas)) < len(aim.gammas)
        or not all(math.isfinite(gamma) and gamma >= 0 for gamma in aim.gammas)
    ):
        raise DataError(
            f"gammas: found {list(aim.gammas)}; give one or more different numbers of 0 or above, such as "
            f"{list(GAMMAS)}"
        )


def _trained(member: Member) -> SoftPrompt:
    if member.error is not None or member.best is None:
        raise member.error or TrainingError(f"task {member.job.name}: nothing was trained")
    return member.best


def _answered(
    base: FrozenBase, member: Member, prompts: Sequence[SoftPrompt], rows: Sequence[EncodedRow]
) -> list[list[str]]:
    """The rows' answers behind each prompt, in mixed passes."""
    with torch.inference_mode():
        cache = base.compute_prefix([place_prompt(base, prompt, member.job.tune.placement) for prompt in prompts])
    asker = replace(member, job=member.job._replace(dev=list(rows)))
    found = iter(answer(base, cache, [query for index in range(len(prompts)) for query in asker.dev_queries(index)]))
    return [[next(found) for _ in rows] for _ in prompts]


class _Reading(NamedTuple):
    """What the prompts are read against: the test rows, the text's token ids [P], the vocabulary [V, H]."""

    job: Job
    test: Sequence[EncodedRow]
    ids: Tensor
    vocabulary: Tensor

    def of(self, member: Member, given: Sequence[str], plain: Sequence[str] | None = None) -> Pulled:
        """A trained member and its answers to the test rows, beside the plain prompt's."""
        prompt = _trained(member)
        return Pulled(
            gamma=member.job.pull.gamma if member.job.pull else 0.0,
            landed=self.landed(prompt),
            distance=float((list_tensors(prompt)[0].float() - self.vocabulary[self.ids]).norm(dim=1).mean()),
            dev=member.best_dev,
            test=self.metric(given),
            compared=self._compared(given, plain) if plain is not None else None,
        )

    def landed(self, prompt: SoftPrompt) -> dict[Measure, float]:
        """Share of virtual tokens whose nearest vocabulary token is the text's, by each measure."""
        found = find_nearest(list_tensors(prompt)[0].float(), self.vocabulary, 1)
        return {kind: float((one.ids[:, 0] == self.ids).double().mean()) for kind, one in found.items()}

    def metric(self, given: Sequence[str]) -> float:
        """The task's metric of these answers to the test rows."""
        return measure(self.job.task.gate.metric, [row.label for row in self.test], given, self.job.text.labels.names)

    def _compared(self, ours: Sequence[str], theirs: Sequence[str]) -> PairedDifference:
        metric, truth = self.job.task.gate.metric, [row.label for row in self.test]
        if self.job.text.free is None:
            return difference(Asked(metric), truth, ours, theirs, self.job.text.labels.names)
        return mean_difference(
            Asked(metric), *(TextRows.of(truth, given).values[cast(TextMetric, metric)] for given in (ours, theirs))
        )
