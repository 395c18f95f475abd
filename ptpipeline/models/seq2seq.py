"""The frozen encoder-decoder model: prompts stand in front of the encoder's input, states come out of its decoder.

Letters: B rows of a batch, S slots of the encoder, T tokens, P virtual tokens, H width, K prompts, N states. Positions
are relative here, so a pad between prompt and text would change what the model computes: an encoder row is
`[prompt][text][pads]`. The decoder reads its start token and the continuation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.errors import BaseModelError
from ptpipeline.models.frozen import FrozenBase, Input, PrefixCache, SoftPrompt, padded_batch

FAMILIES = (
    "t5",
    "mt5",
)  # model types with this forward pass; UMT5 is T5-like too, but transformers 5 scales the states of its untied head


class _Encoded(NamedTuple):
    """B rows behind the encoder: its last states [B, S, H], and which slots hold a token [B, S], all where None."""

    states: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Seq2SeqBase(FrozenBase):
    """An encoder-decoder model of the T5 family; `start` is the token that its decoder begins with."""

    start: int

    def prefix(self, prompts: Sequence[SoftPrompt]) -> PrefixCache:
        """The embeddings of K prompts [K, P_max, H], padded left with zeros: the encoder reads them with each text."""
        embedded = self._embeddings(prompts)
        lengths = torch.tensor([len(prompt) for prompt in embedded], device=self.device)
        width = max(map(len, embedded))
        padded = [torch.nn.functional.pad(prompt, (0, 0, width - len(prompt), 0)) for prompt in embedded]
        return PrefixCache((torch.stack(padded),), lengths)

    def states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Tensor:
        """The decoder's states [N, H]: at its start token, and at each token of the continuation."""
        ids, lengths = padded_batch([[self.start, *row.continuation] for row in inputs], self.device)
        mask = _first(ids.shape[1], lengths)
        return self._decoded(self._encoded(cache, inputs), ids, mask=mask.long())[mask]

    def concatenated(self, prompts: Sequence[SoftPrompt], inputs: Sequence[Input]) -> Tensor:
        """`[prompt][text]` row by row, without pads or masks."""
        embedded = self._embeddings(prompts)
        return torch.cat([self._row(embedded[row.member], row) for row in inputs])

    @torch.inference_mode()
    def decode(self, cache: PrefixCache | None, inputs: Sequence[Input], limit: int) -> list[list[int]]:
        """Greedy decoding with the cache of keys and values; rows together answer as each alone.

        The rows' steps stay level, so that no pad stands among the decoder's positions: a row whose continuation is
        given reads that first.
        """
        encoded, held = self._encoded(cache, inputs), _new_cache()
        tokens = [self.start] * len(inputs)
        found: list[list[int]] = [[] for _ in inputs]
        going, step = set(range(len(inputs))) if limit > 0 else set(), 0
        while going:
            states = self._decoded(encoded, torch.tensor(tokens, device=self.device)[:, None], held=held)
            tokens = self.logits(states[:, 0]).argmax(-1).tolist()
            for row in sorted(going):
                given = inputs[row].continuation
                if step < len(given):
                    tokens[row] = given[step]
                    continue
                if tokens[row] not in self.ends:
                    found[row].append(tokens[row])
                if tokens[row] in self.ends or len(found[row]) == limit:
                    going.remove(row)
            step += 1
        return found

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits [N, V] in float32; a T5 whose head was trained tied scales the states by d_model**-0.5."""
        config = self.model.config
        return super().logits(
            states * config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else states
        )

    def _embeddings(self, prompts: Sequence[SoftPrompt]) -> list[Tensor]:
        embedded = [prompt.to(self.device, self.dtype) for prompt in prompts if isinstance(prompt, Tensor)]
        if len(embedded) != len(prompts):
            raise BaseModelError(
                f"base model {self.ref.name}: prefix tuning (keys and values in every layer) needs a causal model, "
                "this one is an encoder-decoder; take the method prompt or p_tuning"
            )
        return embedded

    def _row(self, prompt: Tensor, row: Input) -> Tensor:
        joined = torch.cat([prompt, self.embed(torch.tensor(row.text, dtype=torch.long))])[None]
        ids = torch.tensor([[self.start, *row.continuation]], device=self.device)
        return self._decoded(_Encoded(self.model.encoder(inputs_embeds=joined).last_hidden_state, None), ids)[0]

    def _encoded(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> _Encoded:
        ids, lengths = padded_batch([row.text for row in inputs], self.device)
        embedded = self.embed(ids)
        if cache is not None:
            members = torch.tensor([row.member for row in inputs], device=self.device)
            embedded, lengths = _joined(cache, members, embedded), lengths + cache.lengths[members]
        mask = _first(embedded.shape[1], lengths)
        return _Encoded(
            self.model.encoder(inputs_embeds=embedded, attention_mask=mask.long()).last_hidden_state, mask.long()
        )

    def _decoded(self, encoded: _Encoded, ids: Tensor, mask: Tensor | None = None, held: Any = None) -> Tensor:
        """The decoder's last hidden states [B, T, H] at every token of `ids`; a cache that is held grows by them."""
        hidden: Tensor = self.model.decoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=encoded.states,
            encoder_attention_mask=encoded.mask,
            past_key_values=held,
            use_cache=held is not None,
        ).last_hidden_state
        return hidden


def _first(width: int, lengths: Tensor) -> Tensor:
    """[B, width]: which slots lie within each row's length."""
    return torch.arange(width, device=lengths.device)[None] < lengths[:, None]


def _joined(cache: PrefixCache, members: Tensor, text: Tensor) -> Tensor:
    """`[prompt][text][pads]` of every row [B, P_max + T, H]; the pads left of shorter prompts move outermost right."""
    prompts = cache.tensors[0].to(text.device, text.dtype)
    own = prompts.expand(len(members), -1, -1) if len(prompts) == 1 else prompts.index_select(0, members)
    joined = torch.cat([own, text], 1)
    pads = cache.width - cache.lengths[members]
    if not pads.any():
        return joined
    slots = joined.shape[1]
    order = (torch.arange(slots, device=text.device)[None] + pads[:, None]) % slots
    return joined.gather(1, order[..., None].expand_as(joined))


def _new_cache() -> Any:
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())
