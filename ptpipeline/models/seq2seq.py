"""The frozen encoder-decoder model: prompts stand in front of the encoder's input, states come out of its decoder.

Letters: B rows of a batch, S slots of the encoder, T tokens, P virtual tokens, H width, K prompts, N states, V
vocabulary. Positions are relative here, so a pad between prompt and text would change what the model computes: an
encoder row is `[prompt][text][pads]`. The decoder reads its start token and the continuation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.errors import BaseModelError
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, PrefixCache, SoftPrompt, index_prompts, pad_batch, pad_left
from ptpipeline.models.slots import Begun, Slots, align_right, show_to_model

# Model types with this forward pass. UMT5 is T5-like too, but transformers 5 scales the states of its untied head.
FAMILIES = ("t5", "mt5")


class _Encoded(NamedTuple):
    """B rows behind the encoder: its last states [B, S, H], and which slots hold a token [B, S] (None: all do)."""

    states: Tensor
    mask: Tensor | None

    def select(self, rows: Tensor) -> "_Encoded":
        """Return these rows [B]; a row may come several times."""
        return _Encoded(self.states[rows], None if self.mask is None else self.mask[rows])


@dataclass(frozen=True)
class Seq2SeqBase(FrozenBase):
    """An encoder-decoder model of the T5 family; `start` is the token that its decoder begins with."""

    start: int

    def compute_prefix(self, prompts: Sequence[SoftPrompt]) -> PrefixCache:
        """Return the embeddings of K prompts [K, P_max, H], padded left: the encoder reads them with each text."""
        embedded = self._embed_prompts(prompts)
        lengths = torch.tensor([len(prompt) for prompt in embedded], device=self.device)  # [K]
        width = max(map(len, embedded))
        stacked = torch.stack([pad_left(prompt, width) for prompt in embedded])  # [K, P_max, H]
        return PrefixCache((stacked,), lengths)

    def compute_states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Tensor:
        """Return the decoder's states [N, H]: at its start token, and at each token of the continuation.

        The encoder reads a text that several rows of one prompt have, such as one with several labels, once.
        """
        ids, lengths = pad_batch([[self.start, *row.continuation] for row in inputs], self.device)  # [B, T], [B]
        mask = _mask_lengths(ids.shape[1], lengths)  # [B, T]
        texts = [(row.prompt, tuple(row.text)) for row in inputs]
        distinct = dict(zip(texts, inputs, strict=True))
        encoded = self._encode_pass(cache, list(distinct.values()))
        if len(distinct) < len(inputs):
            places = {text: place for place, text in enumerate(distinct)}
            encoded = encoded.select(torch.tensor([places[text] for text in texts], device=self.device))
        return self._decode_pass(encoded, ids, mask=mask.long())[mask]

    def concatenate(self, prompts: Sequence[SoftPrompt], inputs: Sequence[Input]) -> Tensor:
        """Return the states [N, H] of `[prompt][text]`, row by row, without pads or masks."""
        embedded = self._embed_prompts(prompts)
        return torch.cat([self._concatenate_row(embedded[row.prompt], row) for row in inputs])

    @torch.inference_mode()
    def decode(self, cache: PrefixCache | None, inputs: Sequence[Input], limit: int) -> list[list[int]]:
        """Return each row's greedy continuation; rows decoded together answer as each row alone.

        All rows take the same steps, so that no pad stands among the decoder's positions: a row whose continuation is
        given reads that first.
        """
        encoded, model_cache = self._encode_pass(cache, inputs), _new_cache()
        tokens = [self.start] * len(inputs)
        generated: list[list[int]] = [[] for _ in inputs]
        unfinished, step = set(range(len(inputs))) if limit > 0 else set(), 0
        while unfinished:
            ids = torch.tensor(tokens, device=self.device)[:, None]  # [B, 1]
            states = self._decode_pass(encoded, ids, model_cache=model_cache)  # [B, 1, H]
            tokens = self.compute_logits(states[:, 0]).argmax(-1).tolist()
            for row in sorted(unfinished):
                given = inputs[row].continuation
                if step < len(given):
                    tokens[row] = given[step]
                    continue
                if tokens[row] not in self.end_tokens:
                    generated[row].append(tokens[row])
                if tokens[row] in self.end_tokens or len(generated[row]) == limit:
                    unfinished.remove(row)
            step += 1
        return generated

    @torch.inference_mode()
    def begin(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Begun:
        """Read the texts of rows that are to be generated; the decoder has read its start token."""
        encoded, model_cache = self._encode_pass(cache, inputs), _new_cache()
        ids = torch.full((len(inputs), 1), self.start, device=self.device)
        states = self._decode_pass(encoded, ids, model_cache=model_cache)[:, 0]  # [B, H]
        own, read = model_cache.self_attention_cache, model_cache.cross_attention_cache
        lengths = torch.tensor([len(row.text) for row in inputs], device=self.device)  # [B]
        if cache is not None:
            lengths = lengths + cache.lengths[index_prompts(inputs, self.device)]
        aligned = align_right(_list_tensors(read), encoded.states.shape[1] - lengths)
        ones = torch.ones_like(lengths)
        return Begun(states, (PrefixCache(_list_tensors(own), ones), PrefixCache(aligned, lengths)))

    @torch.inference_mode()
    def step(self, slots: Sequence[Slots], tokens: Tensor) -> Tensor:
        """Return the states [B, H] behind one more token [B] of every row; the decoder's own slots grow by it."""
        from transformers import EncoderDecoderCache

        own, read = slots
        own.reserve()
        mask = read.mask(0).long()  # [B, S]
        absent = self.embed(tokens)[:, :1].expand(-1, mask.shape[1])[..., None]  # only its shape is looked at
        states = self._decode_pass(
            _Encoded(absent, mask),
            tokens[:, None],
            mask=own.mask(1).long(),
            model_cache=EncoderDecoderCache(show_to_model(own), show_to_model(read)),
        )[:, 0]  # [B, H]
        own.advance()
        return states

    def compute_logits(self, states: Tensor) -> Tensor:
        """Return next-token logits [N, V] in float32 of states [N, H].

        A T5 whose head was trained tied to its embeddings scales the states by d_model**-0.5.
        """
        config = self.model.config
        scaled = getattr(config, "scale_decoder_outputs", False)
        return super().compute_logits(states * config.d_model**-0.5 if scaled else states)

    def _embed_prompts(self, prompts: Sequence[SoftPrompt]) -> list[Tensor]:
        embedded = [prompt.to(self.device, self.dtype) for prompt in prompts if isinstance(prompt, Tensor)]
        if len(embedded) != len(prompts):
            raise BaseModelError(
                f"base model {self.ref.name} is an encoder-decoder, and prefix tuning (keys and values in every layer) "
                "needs a causal model; set tune.method to prompt or p_tuning"
            )
        return embedded

    def _concatenate_row(self, prompt: Tensor, row: Input) -> Tensor:
        text = self.embed(torch.tensor(row.text, dtype=torch.long))  # [T, H]
        encoded = self.model.encoder(inputs_embeds=torch.cat([prompt, text])[None]).last_hidden_state  # [1, S, H]
        ids = torch.tensor([[self.start, *row.continuation]], device=self.device)
        return self._decode_pass(_Encoded(encoded, None), ids)[0]

    def _encode_pass(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> _Encoded:
        ids, lengths = pad_batch([row.text for row in inputs], self.device)  # [B, T], [B]
        embedded = self.embed(ids)  # [B, T, H]
        if cache is not None:
            prompts = index_prompts(inputs, self.device)  # [B]
            embedded = _put_prompts_before(cache, prompts, embedded)  # [B, S, H]
            lengths = lengths + cache.lengths[prompts]  # [B]
        mask = _mask_lengths(embedded.shape[1], lengths).long()  # [B, S]
        return _Encoded(self.model.encoder(inputs_embeds=embedded, attention_mask=mask).last_hidden_state, mask)

    def _decode_pass(
        self, encoded: _Encoded, ids: Tensor, mask: Tensor | None = None, model_cache: Any = None
    ) -> Tensor:
        """Return the decoder's last hidden states [B, T, H] at every token of `ids` [B, T]; a model's cache grows."""
        hidden: Tensor = self.model.decoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=encoded.states,
            encoder_attention_mask=encoded.mask,
            past_key_values=model_cache,
            use_cache=model_cache is not None,
        ).last_hidden_state
        return hidden


def _list_tensors(model_cache: Any) -> tuple[Tensor, ...]:
    """Return the keys of all layers, then their values, [B, kv, S, d] each."""
    layers = model_cache.layers
    return (*(layer.keys for layer in layers), *(layer.values for layer in layers))


def _mask_lengths(width: int, lengths: Tensor) -> Tensor:
    """Return [B, width]: which slots lie within each row's length [B]."""
    return torch.arange(width, device=lengths.device)[None] < lengths[:, None]


def _put_prompts_before(cache: PrefixCache, prompts: Tensor, text: Tensor) -> Tensor:
    """Return `[prompt][text][pads]` of every row [B, P_max + T, H] of texts [B, T, H] behind prompts [B].

    The pads left of shorter prompts move to the right end.
    """
    stacked = cache.tensors[0].to(text.device, text.dtype)  # [K, P_max, H]
    one = len(stacked) == 1
    own = stacked.expand(len(prompts), -1, -1) if one else stacked.index_select(0, prompts)  # [B, P_max, H]
    joined = torch.cat([own, text], 1)  # [B, S, H]
    pads = cache.width - cache.lengths[prompts]  # [B]
    if not pads.any():
        return joined
    slots = joined.shape[1]
    order = (torch.arange(slots, device=text.device)[None] + pads[:, None]) % slots  # [B, S]
    return joined.gather(1, order[..., None].expand_as(joined))


def _new_cache() -> Any:
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())
