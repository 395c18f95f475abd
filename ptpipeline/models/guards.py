"""What a loaded causal model has to be before any prompt stands in front of it; tried once on a few tokens.

The passes by hand take models of known traits alone, and tests say what these compute. Any other model of transformers
may read both ways, count positions in a way of its own, keep no keys and values, or scale its logits.

Letters: H width, V vocabulary.
"""

import torch

from ptpipeline.errors import BaseModelError
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input
from ptpipeline.models.memory import count_free_bytes

_NO_TOKEN = 1.1  # times the embedding of a token is that of none, as a trained prompt is: Gemma 4 looks tokens up by it
_BOTH_WAYS = 0.05  # of a state that may change with what stands behind it: a mixture of experts rounds otherwise
_APART = 1e-2  # of the states, between two orders of computing in float32
_DOUBTFUL, _APART_COARSE = 0.05, 0.4  # in bfloat16: a mixture of experts that rounds to another expert was .13 apart


def check_causal(base: CausalBase) -> None:
    """Raise BaseModelError unless rows behind cached prompts are what the model itself makes of prompt and text."""
    with torch.inference_mode():
        check_direction(base)
        check_prefix(base)
        check_logits(base)


def check_direction(base: CausalBase) -> None:
    """Raise BaseModelError if a token's state depends on the tokens behind it, as in BERT, or is not finite."""
    states = base.model.base_model(input_ids=_ids(base, [[1, 2], [1, 3]])).last_hidden_state[:, 0].float()  # [2, H]
    if not states.isfinite().all():
        raise BaseModelError(
            f"base model {base.ref.name}: it computes numbers that are not finite in {str(base.dtype)[6:]}; fetch its "
            "weights again, or take another base"
        )
    if _measure_difference(states[0], states[1]) > _BOTH_WAYS:
        raise BaseModelError(
            f"base model {base.ref.name}: {type(base.model).__name__} reads texts both ways, so it predicts no next "
            "token; take a model that was trained to continue texts"
        )


def check_prefix(base: CausalBase) -> None:
    """Raise BaseModelError if rows behind prompts of unlike lengths have other states than plain concatenation.

    What is doubtful in bfloat16 is tried again in float32 if that fits into free memory.
    """
    apart, limit = _measure_prefix(base), _DOUBTFUL if base.dtype == torch.bfloat16 else _APART
    if apart > limit and base.dtype == torch.bfloat16:
        parameters: int = sum(parameter.numel() for parameter in base.model.parameters())
        if base.whole and count_free_bytes(base.device) > 8 * parameters:
            apart, limit = _measure_prefix(base.to_float32()), _APART
        else:
            limit = _APART_COARSE
    if apart > limit:
        raise BaseModelError(
            f"base model {base.ref.name}: {type(base.model).__name__} computes otherwise behind keys and values of a "
            "prompt than behind the prompt itself (it counts positions in a way that is not known here), so no prompt "
            "can be trained on it; take another base"
        )


def check_logits(base: CausalBase) -> None:
    """Raise BaseModelError if the model makes its logits otherwise than `compute_logits` does."""
    ids = _ids(base, [[0, 0]])
    own = base.model(input_ids=ids).logits[0, -1:].float()  # [1, V]
    ours = base.compute_logits(base.model.base_model(input_ids=ids).last_hidden_state[0, -1:])  # [1, V]
    if own.shape != ours.shape or not torch.allclose(own, ours, rtol=1e-2, atol=1e-3):
        raise BaseModelError(
            f"base model {base.ref.name}: {type(base.model).__name__} makes its logits in a way that is not known "
            "here, so no prompt can be measured on it; take another base"
        )


def _measure_prefix(base: FrozenBase) -> float:
    prompts = [base.embed(_ids(base, ids)) * _NO_TOKEN for ids in ([4, 5, 6], [7])]
    texts = _ids(base, [[3, 2, 1], [5, 1, 2]]).tolist()
    rows = [Input(text[:2], text[2:], prompt) for prompt, text in enumerate(texts)]
    shared = base.compute_states(base.compute_prefix(prompts), rows).float()  # [4, H]
    return _measure_difference(shared, base.concatenate(prompts, rows).float())


def _ids(base: FrozenBase, rows: list[list[int]] | list[int]) -> torch.Tensor:
    """Return token ids on the base's device; of a tiny vocabulary, the tokens that it has."""
    count: int = base.model.get_input_embeddings().weight.shape[0]
    return torch.tensor(rows, device=base.device) % count


def _measure_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-30))
