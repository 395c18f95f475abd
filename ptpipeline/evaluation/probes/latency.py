"""How long one request takes that is answered alone, and how much of that is the prompt's."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import numpy as np

from ptpipeline.data.rows import Row
from ptpipeline.evaluation.probes.asking import bare_ids, prompted_ids, sampled
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.answers import Opening, generate
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.ranking import Query, rank

REQUESTS = 40
WARM_UP = 5

Ask = Callable[[str], object]


def latency(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds of 40 requests after 5 to warm up, from text to answer, without
    network.

    `latency.ratio` is the median over that of the same texts without the prompt, asked in turns so that a busy machine
    slows both; of generated texts, whose lengths differ, it compares the first token. No rows, no figures.
    """
    texts = [row.text for row in sampled(rows, REQUESTS)]
    if not texts:
        return {}
    turns = list(islice(cycle(texts), REQUESTS))
    kinds = (_served(engine, artifact), *_compared(engine, artifact))
    for text in turns[:WARM_UP]:
        for ask in kinds:
            ask(text)
    seconds = np.array([[_timed(ask, text) for ask in kinds] for text in turns])
    whole, behind, alone = seconds[:, 0], seconds[:, -2], seconds[:, -1]
    p50, p95 = np.percentile(whole * 1000, [50, 95])
    return {
        "latency.p50_ms": float(p50),
        "latency.p95_ms": float(p95),
        "latency.ratio": float(np.median(behind) / np.median(alone)),
    }


def _timed(ask: Ask, text: str) -> float:
    started = time.perf_counter()
    ask(text)
    return time.perf_counter() - started


def _served(engine: Engine, artifact: Artifact) -> Ask:
    """A request as a server answers it."""
    if artifact.manifest.generate is not None:
        return lambda text: engine.generate([Question(artifact.digest, text)])
    return lambda text: engine.score_labels([Question(artifact.digest, text)])


def _compared(engine: Engine, artifact: Artifact) -> list[Ask]:
    """What the prompt's part is read from, the bare base last: a label's request, or the first token behind the prompt
    and without it.
    """
    base, loaded = engine.base, engine.load(artifact)
    if artifact.manifest.generate is None:
        labels = loaded.labels._replace(content_free=())  # calibrated once at loading, never per request
        return [lambda text: rank(base, None, [Query(bare_ids(engine, artifact, text), labels, 0)])]
    return [
        lambda text: generate(base, loaded.cache, [Opening(prompted_ids(engine, artifact, text), 1, 0)]),
        lambda text: generate(base, None, [Opening(bare_ids(engine, artifact, text), 1, 0)]),
    ]
