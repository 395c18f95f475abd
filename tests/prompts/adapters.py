"""PEFT itself, as the oracle: adapters over tiny models, trained for a moment and saved, and the logits it computes
with them.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from torch import Tensor

from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, SoftPrompt

TEXT = [5, 17, 40, 8, 23]
ANSWER = [3, 60]


def saved_by_peft(base: FrozenBase, config: peft.PeftConfig, folder: Path, steps: int = 3) -> peft.PeftModel:
    """An adapter that PEFT made and trained for a few steps, saved as its users save it; the model in eval mode."""
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(base.model), config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        theirs_of(model, TEXT, ANSWER).log_softmax(-1)[:, 11].sum().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return model


def theirs(base: FrozenBase, folder: Path, text: Sequence[int] = TEXT, answer: Sequence[int] = ANSWER) -> Tensor:
    """Logits [1 + answer, V] that PEFT computes with the adapter of that folder."""
    with torch.inference_mode():
        return theirs_of(peft.PeftModel.from_pretrained(copy.deepcopy(base.model), folder).eval(), text, answer)


def theirs_of(model: peft.PeftModel, text: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The same of a model of PEFT's."""
    if model.config.is_encoder_decoder:
        ids, decoder = torch.tensor([text]), torch.tensor([[0, *answer]])
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=decoder).logits[0]
    ids = torch.tensor([[*text, *answer]])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(answer) - 1 :]


def ours(base: FrozenBase, prompt: SoftPrompt, text: Sequence[int] = TEXT, answer: Sequence[int] = ANSWER) -> Tensor:
    """Logits [1 + answer, V] of the serving path."""
    with torch.inference_mode():
        return base.compute_logits(base.compute_states(base.compute_prefix([prompt]), [Input(text, answer, 0)]))
