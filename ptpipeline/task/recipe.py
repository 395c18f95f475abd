"""The recipe of a task file: how a prompt trains, from what, and which settings go together."""

import itertools
import math
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from ptpipeline.records.base import NAME_PATTERN
from ptpipeline.task.document import Section

SHARED_FILE = "shared_prompts.yaml"
CURRENT = "current"  # the alias of a shared prompt that multitask recipes start from


class TextInit(Section):
    """Initialise from the embeddings of a text, tiled or cut to the prompt's length."""

    text: Annotated[str, Field(min_length=1)]


class VersionInit(Section):
    """Initialise from another version, `TASK@ALIAS` or `TASK@N`, of the same base model (SPoT, Vu et al. 2022)."""

    version: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*@[a-z0-9][a-z0-9-]*$")]


class FileInit(Section):
    """Initialise from a tensor `[P, H]` in a `.npy` file, or named `embeddings` in a `.safetensors` file."""

    file: Annotated[str, Field(pattern=r"\.(npy|safetensors)$")]


class Rung(NamedTuple):
    """A step of a search after which only the `keep` trials that are best on dev so far go on."""

    step: int
    keep: int


class Search(Section):
    """Recipes to try in one gang: every combination trains, and the best on dev is kept.

    `length: grow` tries 8, 16 and 32 virtual tokens, and keeps the shortest that the next one does not improve.
    `halving: N` cuts the steps into N parts; after each only the best 1/N of its trials go on (successive halving,
    Jamieson & Talwalkar 2016).
    """

    length: Annotated[list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=1)] | Literal["grow"] | None = None
    learning_rate: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = None
    seed: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] | None = None
    halving: Annotated[int, Field(ge=2, le=8)] | None = None

    @property
    def lengths(self) -> list[int] | None:
        """The prompt lengths to try."""
        return [8, 16, 32] if self.length == "grow" else self.length

    @property
    def size(self) -> int:
        """How many prompts train."""
        return math.prod(len(values) for values in (self.lengths, self.learning_rate, self.seed) if values is not None)

    @model_validator(mode="after")
    def _bounded(self) -> "Search":
        for name, values in (("length", self.lengths), ("learning_rate", self.learning_rate), ("seed", self.seed)):
            if values is not None and len(set(values)) < len(values):
                raise ValueError(f"`{name}` lists a value twice: {values}")
        if not 2 <= self.size <= 64:
            raise ValueError(f"{self.size} combinations: give 2 to 64 of `length`, `learning_rate` and `seed` values")
        if self.halving is not None and self.length == "grow":
            raise ValueError("`length: grow` compares lengths that all trained to the end: remove `halving`")
        return self


class Ensemble(Section):
    """Prompts of the recipe's seed and the seeds after it; answers are averaged or voted (Lester et al. 2021,
    sec. 5).
    """

    members: Annotated[int, Field(ge=2, le=20)] = 5
    combine: Literal["average", "vote"] = "average"


def _init_kind(value: object) -> str:
    """Return which kind of `init` a value means: the section with that one field, else a name."""
    if isinstance(value, Section):
        return type(value).__name__
    kinds = {"text": "TextInit", "version": "VersionInit", "file": "FileInit"}
    return kinds.get(next(iter(value)), "a name") if isinstance(value, dict) and len(value) == 1 else "a name"


INITS = ("uniform", "xavier", "sampled_vocab", "class_labels", "champion")


def _known_init(value: object) -> object:
    if value not in INITS:
        raise ValueError(f"expected {', '.join(INITS)}, {{text: WORDS}}, {{version: TASK@ALIAS}} or {{file: PATH}}")
    return value


Init = Annotated[
    Annotated[
        Literal["uniform", "xavier", "sampled_vocab", "class_labels", "champion"],
        BeforeValidator(_known_init),
        Tag("a name"),
    ]
    | Annotated[TextInit, Tag("TextInit")]
    | Annotated[VersionInit, Tag("VersionInit")]
    | Annotated[FileInit, Tag("FileInit")],
    Discriminator(_init_kind),
]


class Tune(Section):
    """How a prompt trains. The learning rate warms up linearly; `linear` then decays it to `final_fraction` of itself.

    `shared` names the shared prompt that `multitask` starts from; `encoder` is the prompt encoder of `p_tuning`;
    `encoder_width` the hidden width of the network that `residual`, `p_tuning` and `prefix` train through. `prefix`
    needs a causal model. At most `dev_rows` rows of the dev split are answered every `eval_every` steps.
    """

    method: Literal["prompt", "residual", "p_tuning", "prefix", "multitask", "ensemble"] = "prompt"
    num_virtual_tokens: Annotated[int, Field(ge=1, le=1000)] = 16
    placement: Literal["before_bos", "after_bos"] = "before_bos"
    init: Init = "sampled_vocab"
    shared: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    encoder: Literal["lstm", "mlp"] = "lstm"
    encoder_width: Annotated[int, Field(ge=1, le=8192)] | None = None
    ensemble: Ensemble | None = None
    search: Search | None = None
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    schedule: Literal["linear", "constant"] = "linear"
    steps: Annotated[int, Field(ge=1)] = 300
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    eval_every: Annotated[int, Field(ge=1)] = 50
    dev_rows: Annotated[int, Field(ge=1)] = 200
    patience: Annotated[int, Field(ge=1)] = 4
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    store_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @model_validator(mode="after")
    def _fields_of_the_method(self) -> "Tune":
        given = self.model_fields_set
        if (self.method == "ensemble") != (self.ensemble is not None):
            raise ValueError(
                "`method: ensemble` and `ensemble: {members: 5, combine: average}` go together: give both or neither"
            )
        if (self.method == "multitask") != (self.shared is not None):
            raise ValueError(
                f"`method: multitask` and `shared`, a name in {SHARED_FILE}, go together: give both or neither"
            )
        if self.method == "multitask" and "init" in given:
            raise ValueError("multitask starts from the shared prompt: remove `init`")
        if "encoder" in given and self.method != "p_tuning":
            raise ValueError(f"`encoder` is the prompt encoder of p_tuning; {self.method} has none: remove it")
        if "encoder_width" in given and self.method not in ("residual", "p_tuning", "prefix"):
            raise ValueError(
                f"`encoder_width` belongs to residual, p_tuning and prefix; {self.method} has no network: remove it"
            )
        if self.method == "prefix" and self.placement == "after_bos":
            raise ValueError(
                "a prefix is keys and values in front of all tokens: remove `placement: after_bos`, which is "
                "for embeddings"
            )
        starts = self.method == "multitask" or isinstance(self.init, VersionInit | FileInit)
        if starts and self.search is not None and self.search.length is not None:
            raise ValueError("the prompt that the recipe starts from has one length: remove `search.length`")
        if self.method == "ensemble" and self.search is not None:
            raise ValueError(
                "`search` keeps one prompt of many, an ensemble keeps all: search with `method: prompt` first"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Tune":
        """Refuse a setting that would have no effect."""
        given = self.model_fields_set
        if "final_fraction" in given and self.schedule == "constant":
            raise ValueError(
                "`final_fraction` is what `schedule: linear` decays to, and a constant rate does not decay: remove it"
            )
        if "final_fraction" in given and self.warmup_steps >= self.steps:
            raise ValueError(
                f"`final_fraction`: the rate warms up through all {self.steps} steps (`warmup_steps` is "
                f"{self.warmup_steps}) and never decays: remove it, or lower `warmup_steps`"
            )
        for field, listed in (("num_virtual_tokens", "length"), ("learning_rate", "learning_rate"), ("seed", "seed")):
            if field in given and self.search is not None and getattr(self.search, listed) is not None:
                raise ValueError(
                    f"`search.{listed}` lists the values to try instead of `{field}`: remove one of the two"
                )
        if self.search is not None and self.search.halving is not None and not self.rungs():
            raise ValueError(
                f"`search.halving`: no part of the {self.steps} steps ends at a dev evaluation (`eval_every` is "
                f"{self.eval_every}) behind the {self.warmup_steps} steps of warm-up, so no trial would end early: "
                "lower `eval_every` or `warmup_steps`"
            )
        return self

    def rungs(self) -> tuple[Rung, ...]:
        """Return where the trials of its search are compared; none without `halving`.

        The steps are cut into `halving` equal parts, each rounded up to a dev evaluation. After each part but the last
        the best 1/`halving` of those in it go on, rounded up. No rung lies within the warm-up.
        """
        if self.search is None or self.search.halving is None:
            return ()
        parts, size = self.search.halving, self.search.size
        ends = {math.ceil(self.steps * part / parts / self.eval_every) * self.eval_every for part in range(1, parts)}
        steps = sorted(step for step in ends if self.warmup_steps < step < self.steps)
        return tuple(Rung(step, math.ceil(size / parts**depth)) for depth, step in enumerate(steps, 1))

    def variants(self) -> list["Tune"]:
        """Return the recipes that train for this one: of its search or ensemble in a fixed order, or itself alone."""
        if self.ensemble is not None:
            alone = {"method": "prompt", "ensemble": None}
            return [self.model_copy(update={**alone, "seed": self.seed + i}) for i in range(self.ensemble.members)]
        if self.search is None:
            return [self]
        lengths = self.search.lengths or [self.num_virtual_tokens]
        rates, seeds = self.search.learning_rate or [self.learning_rate], self.search.seed or [self.seed]
        return [
            self.model_copy(update={"search": None, "num_virtual_tokens": length, "learning_rate": rate, "seed": seed})
            for length, rate, seed in itertools.product(lengths, rates, seeds)
        ]


class SharedPrompt(Section):
    """A prompt that several source tasks train together (multitask prompt tuning, Wang et al. 2023).

    A teacher prompt trains for each source by the recipe `tune`; then all teachers are distilled into the shared
    prompt.
    """

    base_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    sources: Annotated[list[Annotated[str, Field(pattern=NAME_PATTERN)]], Field(min_length=2, max_length=50)]
    tune: Tune = Tune()

    @field_validator("sources")
    @classmethod
    def _distinct_sources(cls, sources: list[str]) -> list[str]:
        if len(set(sources)) < len(sources):
            raise ValueError("a source is listed twice: list each once")
        return sources

    @field_validator("tune")
    @classmethod
    def _plain_recipe(cls, tune: Tune) -> Tune:
        if tune.method != "prompt" or tune.search is not None:
            raise ValueError(
                "teachers and the shared prompt train by `method: prompt`, without a search: change `tune`"
            )
        if isinstance(tune.init, VersionInit | FileInit) or tune.init in ("champion", "class_labels"):
            raise ValueError(
                "all sources start alike, without a trained prompt: use sampled_vocab, uniform, xavier or {text: WORDS}"
            )
        return tune
