"""Records of the words near a soft prompt, which carry their own warning. Imports no torch.

Letters: P virtual tokens, k neighbours.
"""

from typing import Literal

from ptpipeline.records.base import Record
from ptpipeline.records.reports import PairedDifference

Measure = Literal["cosine", "dot", "euclidean"]
MEASURES: tuple[Measure, ...] = ("cosine", "dot", "euclidean")
PAIRS: tuple[tuple[Measure, Measure], ...] = (("cosine", "dot"), ("cosine", "euclidean"), ("dot", "euclidean"))

WARNING = (
    "A hint, never proof: the vocabulary tokens nearest to a soft prompt are no faithful reading of it. "
    "Prompts within 2% of the best of "
    "their size can be made to project to any text, even to the definition of a contradictory task (Khashabi "
    "et al. 2022), and soft prompts "
    "lie in regions of the embedding space apart from those of natural language, so that comparing the two may "
    "mislead (Bailey et al. 2023)."
)


class Neighbour(Record):
    """A vocabulary token near a virtual token: id, readable text, and cosine, dot product or distance of the two."""

    id: int
    token: str
    value: float


class NearTokens(Record):
    """The k nearest vocabulary tokens of one virtual token by each measure, nearest first.

    `overlap` is the Jaccard index of the k by two measures: 1 if they agree, 0 if they share no token.
    """

    nearest: dict[Measure, list[Neighbour]]
    overlap: dict[str, float]


class Neighbours(Record):
    """The nearest vocabulary tokens of each virtual token [P], and `overlap`, the means of their overlaps.

    A prompt without embeddings has none; `absent` tells why.
    """

    k: int
    tokens: list[NearTokens]
    overlap: dict[str, float]
    absent: str | None = None
    warning: str = WARNING


class Hint(Record):
    """A sensitive term among the neighbours of a virtual token, counted from 0, by these measures."""

    virtual_token: int
    token: str
    category: str
    measures: list[Measure]
    warning: str = WARNING


class Pulled(Record):
    """A prompt that trained with a pull of strength `gamma` towards a text, as it was after its last step.

    `landed` is the share of virtual tokens whose nearest vocabulary token is the text's, by each measure; `distance`
    the mean Euclidean distance to the text's embeddings; `dev` and `test` are the task's metric; `compared` is this
    prompt minus the plain one on the test rows. The plain prompt itself has gamma 0 and no comparison.
    """

    gamma: float
    landed: dict[Measure, float]
    distance: float
    dev: float
    test: float
    compared: PairedDifference | None = None


class Wayward(Record):
    """The Waywardness experiment (Khashabi et al. 2022): one text, the plain prompt, one pulled prompt for each gamma.

    `tokens` are the text's, one per virtual token, repeated or cut to P. Their own embeddings as an untrained prompt
    score `text_test` and land by `text_landed`: by the dot product not even a token is always its own nearest.
    """

    task: str
    text: str
    tokens: list[str]
    metric: str
    steps: int
    test_rows: int
    text_test: float
    text_landed: dict[Measure, float]
    plain: Pulled
    pulled: list[Pulled]
    warning: str = WARNING
