"""The Waywardness experiment: does a prompt still solve its task if its tokens lie where an unrelated text lies?

Khashabi et al. 2022: a penalty pulls the prompt towards the embeddings of an unrelated text. If the prompt lands on
that text and is about as good, its nearest words cannot have told what it does.

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
from ptpipeline.errors import DataError
from ptpipeline.evaluation.metrics import measure
from ptpipeline.evaluation.paired import Hypothesis, difference, mean_difference
from ptpipeline.evaluation.texts import TextRows
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues, SoftPrompt, count_virtual_tokens, list_tensors
from ptpipeline.prompts.initialise import tokenize_text
from ptpipeline.prompts.interpretation import Measure, Pulled, Wayward
from ptpipeline.prompts.neighbours import embed_vocabulary, find_nearest, make_token_printer
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import round_to_stored
from ptpipeline.records.data import Snapshot
from ptpipeline.records.reports import PairedDifference, TextMetric
from ptpipeline.serving.answers import answer
from ptpipeline.storage import ObjectStore
from ptpipeline.task.task import Task
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Job, Member, Pull
from ptpipeline.tuning.start import load_start
from ptpipeline.tuning.tracker import NoTracker
from ptpipeline.tuning.tune import TaskData, build_job

log = logging.getLogger(__name__)

# On SmolLM2 in 120 steps nothing lands at the .01 of google-research/prompt-tuning, and all tokens do at 1.
GAMMAS = (0.1, 1.0, 10.0)


class Aim(NamedTuple):
    """The text to pull towards, and how strongly: one prompt trains for each gamma."""

    text: str
    gammas: Sequence[float] = GAMMAS


def build_plain_job(base: FrozenBase, task: Task, snapshot: Snapshot, store: ObjectStore) -> Job:
    """Return what the task trains, without a pull; the first recipe of a search or an ensemble."""
    start = load_start(base, task, store, log.info)
    return build_job(base, TaskData(task, snapshot), task.tune.variants()[0], store, start.prompt)


def run_wayward(
    base: FrozenBase, job: Job, test: Sequence[EncodedRow], aim: Aim, progress: Callable[[str], None] = log.info
) -> Wayward:
    """Train the job once as it is and once for each gamma; return how each prompt does and where it lies.

    All train to the last step, in one gang from one start on the same batches. The stored form of the last step is
    read, of the plain prompt too: the step that is best on dev may lie before the prompt has arrived. Raises DataError
    for a prefix, a text without tokens or gammas that are not such, and the error of the first prompt that failed.
    """
    _check_aim(base, job, aim)
    ids = tokenize_text(base, aim.text, count_virtual_tokens(job.initial))  # [P]
    goal = base.embed(ids).detach().to("cpu", list_tensors(job.initial)[0].dtype)  # [P, H]
    one_look = job.tune.model_copy(update={"eval_every": job.tune.steps})  # nothing stops early, the best is the last
    plain = job._replace(tune=one_look)
    jobs = [plain, *(plain._replace(name=f"{job.name}/pull {gamma!r}", pull=Pull(goal, gamma)) for gamma in aim.gammas)]
    members = run_gang(base, jobs, NoTracker(), progress).members
    prompts = [*(member.require_best() for member in members), round_to_stored(goal, job.tune.store_dtype)]
    plain_answers, *pulled_answers, bare_answers = _answer_rows(base, members[0], prompts, test)
    reading = _Reading(job, test, ids, embed_vocabulary(base))
    show = make_token_printer(base)
    return Wayward(
        task=job.task.name,
        text=aim.text,
        tokens=[show(token) for token in ids.tolist()],
        metric=job.task.gate.metric,
        steps=job.tune.steps,
        test_rows=len(test),
        text_test=reading.measure(bare_answers),
        text_landed=reading.measure_landing(prompts[-1]),
        plain=reading.describe(members[0], plain_answers),
        pulled=[
            reading.describe(member, answers, plain_answers)
            for member, answers in zip(members[1:], pulled_answers, strict=True)
        ],
    )


def _check_aim(base: FrozenBase, job: Job, aim: Aim) -> None:
    if isinstance(job.initial, KeyValues):
        raise DataError(
            f"task {job.task.name}: a prefix has no embeddings to pull towards a text; choose a task with another "
            "tune.method"
        )
    if not base.encode(aim.text, False):
        raise DataError(
            f"the text to pull towards, {aim.text!r}, has no tokens for {base.ref.name}; give a text with words"
        )
    unique = len(set(aim.gammas)) == len(aim.gammas)
    if not aim.gammas or not unique or not all(math.isfinite(gamma) and gamma >= 0 for gamma in aim.gammas):
        raise DataError(
            f"gammas: found {list(aim.gammas)}; give one or more different numbers of 0 or above, such as "
            f"{list(GAMMAS)}"
        )


def _answer_rows(
    base: FrozenBase, member: Member, prompts: Sequence[SoftPrompt], rows: Sequence[EncodedRow]
) -> list[list[str]]:
    """Return the rows' answers behind each prompt, from mixed passes."""
    with torch.inference_mode():
        cache = base.compute_prefix([place_prompt(base, prompt, member.job.tune.placement) for prompt in prompts])
    asker = replace(member, job=member.job._replace(dev=list(rows)))
    requests = [request for index in range(len(prompts)) for request in asker.build_dev_requests(index)]
    answers = iter(answer(base, cache, requests))
    return [[next(answers) for _ in rows] for _ in prompts]


class _Reading(NamedTuple):
    """What the prompts are read against: the test rows, the text's token ids [P], the vocabulary [V, H]."""

    job: Job
    test: Sequence[EncodedRow]
    ids: Tensor
    vocabulary: Tensor

    def describe(self, member: Member, answers: Sequence[str], plain: Sequence[str] | None = None) -> Pulled:
        """Return the record of a trained member from its answers to the test rows, beside the plain prompt's."""
        prompt = member.require_best()
        return Pulled(
            gamma=member.job.pull.gamma if member.job.pull else 0.0,
            landed=self.measure_landing(prompt),
            distance=float((list_tensors(prompt)[0].float() - self.vocabulary[self.ids]).norm(dim=1).mean()),
            dev=member.best_dev,
            test=self.measure(answers),
            compared=self._compare(answers, plain) if plain is not None else None,
        )

    def measure_landing(self, prompt: SoftPrompt) -> dict[Measure, float]:
        """Return the share of virtual tokens whose nearest vocabulary token is the text's, by each measure."""
        nearest = find_nearest(list_tensors(prompt)[0].float(), self.vocabulary, 1)
        return {kind: float((tokens.ids[:, 0] == self.ids).double().mean()) for kind, tokens in nearest.items()}

    def measure(self, answers: Sequence[str]) -> float:
        """Return the task's metric of these answers to the test rows."""
        labels = [row.label for row in self.test]
        return measure(self.job.task.gate.metric, labels, answers, self.job.text.labels.names)

    def _compare(self, ours: Sequence[str], theirs: Sequence[str]) -> PairedDifference:
        metric, truth = self.job.task.gate.metric, [row.label for row in self.test]
        if self.job.text.free is None:
            return difference(Hypothesis(metric), truth, ours, theirs, self.job.text.labels.names)
        scores = (TextRows.of(truth, answers).values[cast(TextMetric, metric)] for answers in (ours, theirs))
        return mean_difference(Hypothesis(metric), *scores)
