"""How long one request takes that is answered alone, and how much of that is due to the prompt."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import numpy as np

from ptpipeline.data.rows import Row
from ptpipeline.data.sample import sample_rows
from ptpipeline.evaluation.probes.queries import encode_bare, encode_prompted
from ptpipeline.progress import advance, expect
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.answers import Opening, generate
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.task.template import Fields

REQUESTS = 40
WARM_UP = 5

Request = Callable[[Fields], object]


def measure_latency(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> dict[str, float]:
    """Return the median and 95th percentile in milliseconds of 40 requests, after 5 to warm up.

    A request is timed from text to answer, without network. `latency.ratio` is the median divided by that of the same
    texts without the prompt; the two are timed in turns, so that a busy machine slows both. For generated texts, whose
    lengths differ, it compares the first token. Empty if there are no rows.
    """
    texts = [row.fields for row in sample_rows(rows, REQUESTS)]
    if not texts:
        return {}
    turns = list(islice(cycle(texts), REQUESTS))
    requests = (_served_request(engine, artifact), *_compared_requests(engine, artifact))
    for text in turns[:WARM_UP]:
        for request in requests:
            request(text)
    seconds = np.zeros((len(turns), len(requests)))  # [texts, requests]
    expect(len(turns), "texts")
    for row, text in enumerate(turns):
        seconds[row] = [_seconds(request, text) for request in requests]
        advance(1)
    served, behind, alone = seconds[:, 0], seconds[:, -2], seconds[:, -1]
    p50, p95 = np.percentile(served * 1000, [50, 95])
    return {
        "latency.p50_ms": float(p50),
        "latency.p95_ms": float(p95),
        "latency.ratio": float(np.median(behind) / np.median(alone)),
    }


def _seconds(request: Request, text: Fields) -> float:
    started = time.perf_counter()
    request(text)
    return time.perf_counter() - started


def _served_request(engine: Engine, artifact: Artifact) -> Request:
    """The request as a server answers it."""
    if artifact.manifest.generate is not None:
        return lambda text: engine.generate([Question(artifact.digest, text)])
    return lambda text: engine.score_labels([Question(artifact.digest, text)])


def _compared_requests(engine: Engine, artifact: Artifact) -> list[Request]:
    """The requests that show the prompt's part, the bare base last.

    For labels the ranking without the prompt, for texts the first token behind the prompt and without it.
    """
    base, loaded = engine.base, engine.load(artifact)
    if artifact.manifest.generate is None:
        labels = loaded.labels._replace(content_free=())  # calibrated once at loading, never per request
        return [lambda text: rank(base, None, [Query(encode_bare(engine, artifact, text), labels, 0)])]
    cache = engine.find_cache(artifact.digest)
    return [
        lambda text: generate(base, cache, [Opening(encode_prompted(engine, artifact, text), 1, 0)]),
        lambda text: generate(base, None, [Opening(encode_bare(engine, artifact, text), 1, 0)]),
    ]
