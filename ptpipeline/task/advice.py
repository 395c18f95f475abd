"""Settings of a task file that work against each other: allowed, but one of them has no effect or the wrong one."""

from ptpipeline.task.labels import find_beginnings
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Task

Place = tuple[str, ...]
_CURLY = ("\u201c", "\u201d", "\u201e", "\u2018", "\u2019")


def advise_task(task: Task) -> dict[Place, str]:
    """Return one sentence for each field of the task file that another one works against, by its place."""
    advice = {("tune", *place): sentence for place, sentence in advise_recipe(task.tune).items()}
    advice |= _advise_words(task)
    gate = task.gate.checks
    if "bias" in gate.model_fields_set and gate.bias.policy != "off" and not gate.bias.swaps:
        advice["gate", "checks", "bias"] = "judges nothing without pairs of terms: give `swaps`, such as [[he, she]]"
    if "hard_prompt" in gate.gain.over and task.hard_prompt.empty:
        advice["gate", "checks", "gain"] = (
            "compares with the hard prompt, which has neither instruction nor examples and so equals zero-shot"
        )
    for name in ("never", "worst_label") if task.generate else ():
        if name in gate.model_fields_set and getattr(gate, name).policy != "off":
            advice["gate", "checks", name] = "judges labels, and the task answers in free text: remove it"
    data = task.data.checks
    if "min_rows_per_label" in data.model_fields_set and data.rows_per_label == "off":
        advice["data", "checks", "min_rows_per_label"] = "has no effect, because rows_per_label is off"
    return advice


def advise_recipe(tune: Tune) -> dict[Place, str]:
    """Return one sentence for each field of the recipe that another one works against, by its place in it."""
    advice: dict[Place, str] = {}
    if tune.warmup_steps >= tune.steps:
        advice["steps",] = (
            f"all {tune.steps} steps lie within the warm-up of {tune.warmup_steps} (tune.warmup_steps), so the rate is "
            f"{'only at the last step' if tune.warmup_steps == tune.steps else 'never'} as high as learning_rate: "
            "raise `steps` or lower `warmup_steps`"
        )
    given = tune.model_fields_set
    if "eval_every" in given and tune.eval_every > tune.steps:
        advice["eval_every",] = (
            f"is {tune.eval_every}, more than the {tune.steps} steps, so dev is measured at the end alone and no "
            "earlier checkpoint can be kept: lower it"
        )
    if "patience" in given and tune.patience * tune.eval_every >= tune.steps:
        advice["patience",] = (
            f"never ends the run early: {tune.patience} evaluations, one every {tune.eval_every} steps (eval_every), "
            f"take as long as all {tune.steps} steps"
        )
    return advice


def _advise_words(task: Task) -> dict[Place, str]:
    advice: dict[Place, str] = {}
    for one, two in find_beginnings(task.labels):
        advice["labels", two] = (
            f"its words {task.labels[two]!r} begin with those of the label {one!r}, {task.labels[one]!r}; if their "
            "tokens do too, the shorter is always likelier and the training refuses them: take other words"
        )
    if isinstance(task.template, str) and task.template[:1] in _CURLY and task.template[-1:] in _CURLY:
        advice["template",] = "stands in curly quotes, which the model reads: write straight double quotes around it"
    elif isinstance(task.template, str) and "\\n" in task.template:
        advice["template",] = "holds a backslash and an n, which are no line end: for one, write it in double quotes"
    elif isinstance(task.template, str) and task.template[-1:].isspace():
        spaced = [label for label, words in task.labels.items() if words[:1].isspace()]
        if spaced:
            advice["template",] = (
                f"ends in white space, and the words of {spaced[0]!r} begin with it, so the model reads it twice: end "
                "the template without it"
            )
    return advice
