"""Warnings about settings of a recipe outside the ranges that the papers support, or that work against each other."""

from ptpipeline.models.frozen import FrozenBase
from ptpipeline.task.advice import advise_recipe
from ptpipeline.task.recipe import Tune

SMALL_BASE = 10**9  # Lester et al. 2021, figure 1: below about a billion parameters prompts trail fine-tuning
LONG_PROMPT = 100  # virtual tokens; section 3.2: beyond, larger models lose a little
CONTEXT_SHARE = 0.25  # of the context that a prefix may take before texts are cramped


def advise(tune: Tune, base: FrozenBase, rows: int) -> list[str]:
    """Return one sentence for each setting that papers, other settings, or the number of training rows speak against;
    none stops the run.
    """
    warnings = [f"tune.{'.'.join(place)}: {sentence}" for place, sentence in advise_recipe(tune).items()]
    if tune.batch_size > rows:
        warnings.append(
            f"tune.batch_size: {tune.batch_size} rows a step, and there are {rows} training rows, so each step takes "
            "all of them: lower it"
        )
    count, parameters = tune.num_virtual_tokens, sum(parameter.numel() for parameter in base.model.parameters())
    if count > LONG_PROMPT and tune.method != "prefix":
        warnings.append(
            f"tune.num_virtual_tokens: {count} virtual tokens; prompts gained nothing beyond {LONG_PROMPT} "
            "(Lester et al. 2021)"
        )
    if count > CONTEXT_SHARE * base.context:
        warnings.append(
            f"tune.num_virtual_tokens: the prompt takes {count} of the {base.context} tokens of the context; "
            "texts get the rest"
        )
    if parameters < SMALL_BASE:
        warnings.append(
            f"base_model: {base.ref.name} has {parameters / 1e6:.0f}M parameters; under 1000M, full "
            "fine-tuning is often better (Lester et al. 2021)"
        )
    return warnings
