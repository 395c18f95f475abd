"""The check before each run: the shared prompt pass against plain concatenation, on two rows per member."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import SoftPrompt, count_virtual_tokens, list_tensors, rebuild
from ptpipeline.models.memory import count_free_bytes
from ptpipeline.tuning.passes import Backward, Example, concatenated_backward, shared_backward
from ptpipeline.tuning.places import split_places

log = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = 1e-3  # float32: two exact orders of summation differ by about 1e-5
MIN_COSINE = 0.95  # bfloat16: two exact paths differ by about 4%


class SelfCheck(NamedTuple):
    """The path that the run takes, and how well the two agreed: `relative_error` or `cosine` of the worst member."""

    backward: Backward
    figures: dict[str, float | str]


def check_path(base: FrozenBase, prompts: Sequence[SoftPrompt], examples: Sequence[Example]) -> SelfCheck:
    """Return the shared path if its gradients agree with the concatenated path's; else that one, with a warning.

    They are compared in float32 if a float32 copy of the base fits into free memory, else in the compute type by
    cosine.
    """
    exact = base.dtype == torch.float32 or _float32_fits(base)
    checked = base.to_float32() if exact and base.dtype != torch.float32 else base
    shared, reference = (
        _compute_gradients(checked, path, prompts, examples) for path in (shared_backward, concatenated_backward)
    )
    pairs = list(zip(shared, reference, strict=True))
    if exact:
        worst = max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)
        agrees, figure = worst <= MAX_RELATIVE_ERROR, "relative_error"
    else:
        worst = min(float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in pairs)
        agrees, figure = worst >= MIN_COSINE, "cosine"
    path = "shared" if agrees else "concatenated"
    if agrees:
        log.info("self-check: shared prompt pass agrees with concatenation, %s %.2g", figure, worst)
    else:
        log.warning(
            "self-check: shared prompt pass disagrees (%s %.2g); this run takes the slower concatenated path",
            figure,
            worst,
        )
    return SelfCheck(shared_backward if agrees else concatenated_backward, {figure: worst, "path": path})


def _compute_gradients(
    base: FrozenBase, backward: Backward, prompts: Sequence[SoftPrompt], examples: Sequence[Example]
) -> list[Tensor]:
    copies = [
        rebuild(prompt, [tensor.detach().clone().requires_grad_() for tensor in list_tensors(prompt)])
        for prompt in prompts
    ]
    lengths = [count_virtual_tokens(prompt) for prompt in prompts]
    for places in split_places(lengths, base.prompt_tokens):  # memory as in training
        rows = [row._replace(prompt=row.prompt - places.start) for row in examples if row.prompt in places]
        backward(base, copies[places.start : places.stop], rows)
    return [
        torch.cat([tensor.grad.flatten() for tensor in list_tensors(copy) if tensor.grad is not None])
        for copy in copies
    ]


def _float32_fits(base: FrozenBase) -> bool:
    parameters: int = sum(parameter.numel() for parameter in base.model.parameters())
    return base.whole and count_free_bytes(base.device) > 12 * parameters
