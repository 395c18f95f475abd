"""The frozen causal model as everything else sees it: it consumes a prefix cache and a batch's own tokens.

Letters: B rows of a batch, T tokens, P virtual tokens, H width, L layers, K prompts. Positions are always explicit:
a row's own tokens start at the length of its prefix. Text is padded right; where P differs within a cache, its pads
stand left of the prompt, outermost.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ptpipeline.errors import BaseModelError
from ptpipeline.models.attention import fused, use_short_rows
from ptpipeline.models.base import Prepared
from ptpipeline.records import BaseModelRef

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PrefixCache(NamedTuple):
    """Keys and values of K prompts: per layer [K, heads_kv, P_max, d], and each prompt's own length [K].

    Slots left of a prompt's length are padding and masked away.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: Tensor

    @property
    def width(self) -> int:
        """P_max, the padded length."""
        return self.keys[0].shape[2]


def stack_caches(caches: Sequence[PrefixCache]) -> PrefixCache:
    """Several caches as one, members in order, padded left to the longest."""
    width = max(cache.width for cache in caches)

    def padded(tensors: list[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, 0, width - t.shape[2], 0)) for t in tensors])

    layers = range(len(caches[0].keys))
    return PrefixCache(
        tuple(padded([cache.keys[layer] for cache in caches]) for layer in layers),
        tuple(padded([cache.values[layer] for cache in caches]) for layer in layers),
        torch.cat([cache.lengths for cache in caches]),
    )


class Batch(NamedTuple):
    """B rows of token ids padded right [B, T], their own lengths [B], and which prompt each follows [B]."""

    ids: Tensor
    lengths: Tensor
    members: Tensor


def make_batch(rows: Sequence[Sequence[int]], members: Sequence[int]) -> Batch:
    """Right-padded batch of token rows; the value of a pad is irrelevant, since it is masked by length."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    return Batch(ids, lengths, torch.tensor(members))


@dataclass(frozen=True)
class CausalBase:
    """One frozen causal model in eval mode, its tokenizer, and what it hashes to."""

    model: Any
    tokenizer: Any
    ref: BaseModelRef
    dtype: torch.dtype
    context: int

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.model.device
        return device

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids of a text; `special` as the tokenizer adds BOS and the like at the start of an input."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., H] from the embedding module, which scales them where the family does."""
        embedded: Tensor = self.model.get_input_embeddings()(ids.to(self.device))
        return embedded

    def prefix(self, prompts: Sequence[Tensor]) -> PrefixCache:
        """The prefix cache of K prompts [P_k, H] in one pass; gradients flow back to each prompt."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        width = int(lengths.max())
        padded = [torch.nn.functional.pad(p.to(self.device, self.dtype), (0, 0, width - len(p), 0)) for p in prompts]
        slots = torch.arange(width, device=self.device)[None]
        mask = slots >= (width - lengths)[:, None]
        positions = (slots - (width - lengths)[:, None]).clamp(min=0)
        cache = self._new_cache()
        self._run(
            inputs_embeds=torch.stack(padded), attention_mask=mask.long(), position_ids=positions, past_key_values=cache, use_cache=True
        )
        self._check_cache(cache, width)
        return PrefixCache(tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers), lengths)

    def hidden(self, prefix: PrefixCache | None, batch: Batch) -> Tensor:
        """Last hidden states [B, T, H] of each row behind its own prompt (without any, where `prefix` is None)."""
        ids, lengths, members = (part.to(self.device) for part in batch)
        rows, columns = ids.shape
        slots = torch.arange(columns, device=self.device)[None]
        text_mask = slots < lengths[:, None]
        if prefix is None:
            return self._run(input_ids=ids, attention_mask=text_mask.long(), position_ids=slots.expand(rows, -1), use_cache=False)
        offsets = prefix.lengths[members][:, None]
        prefix_slots = torch.arange(prefix.width, device=self.device)[None]
        mask = torch.cat([prefix_slots >= prefix.width - offsets, text_mask], 1)
        cache = self._new_cache()
        cache.layers += [
            _cache_layer(_gathered(keys, members), _gathered(values, members)) for keys, values in zip(prefix.keys, prefix.values, strict=True)
        ]
        return self._run(
            input_ids=ids, attention_mask=mask.long(), position_ids=offsets + slots, past_key_values=cache, use_cache=True
        )

    def concatenated(self, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
        """The same hidden states by plain concatenation `[prompt][text]`, one row at a time: the reference path."""
        states = []
        for ids, length, member in zip(*batch, strict=True):
            prompt, text = prompts[int(member)], self.embed(ids[: int(length)])
            joined = torch.cat([prompt.to(self.device, text.dtype), text])[None]
            with fused(self.model):
                out = self._run(inputs_embeds=joined, use_cache=False)[0, len(prompt) :]
            states.append(torch.nn.functional.pad(out, (0, 0, 0, batch.ids.shape[1] - int(length))))
        return torch.stack(states)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [N, V] in float32 of chosen hidden states [N, H]."""
        logits: Tensor = self.model.lm_head(hidden).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def in_float32(self) -> "CausalBase":
        """A float32 copy, for exact checks."""
        import copy

        return CausalBase(copy.deepcopy(self.model).float(), self.tokenizer, self.ref, torch.float32, self.context)

    def weights_digest(self) -> str:
        """sha256 of the weights in memory: the same after training as before."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _run(self, **inputs: Any) -> Tensor:
        states: Tensor = self.model.base_model(**inputs).last_hidden_state
        return states

    def _new_cache(self) -> Any:
        """A fresh, full-length cache for one forward: update grows it, and a sliding layer would drop slots."""
        from transformers import DynamicCache

        return DynamicCache()

    def _check_cache(self, cache: Any, width: int) -> None:
        if len(cache.layers) != self.model.config.num_hidden_layers or any(layer.keys.shape[2] != width for layer in cache.layers):
            raise BaseModelError(
                f"base model {self.ref.name}: its layers keep no plain keys and values for each token "
                "(hybrid or state-space layers, or gradient checkpointing); such a base is not supported"
            )


def _gathered(tensor: Tensor, members: Tensor) -> Tensor:
    """[K, heads, P, d] -> [B, heads, P, d]; a single prompt is expanded without a copy."""
    if tensor.shape[0] == 1:
        return tensor.expand(len(members), -1, -1, -1)
    return tensor.index_select(0, members)


def _cache_layer(keys: Tensor, values: Tensor) -> Any:
    """A cache layer that holds these; its own `update` would copy them once more."""
    from transformers.cache_utils import DynamicLayer

    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 matrices natively; emulated ones are slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))


def compute_dtype(setting: Literal["auto", "float32", "bfloat16"]) -> str:
    """The compute type that a setting means on this machine: `float32` or `bfloat16`."""
    if setting == "auto":
        return "bfloat16" if native_bfloat16() else "float32"
    return setting


def load_causal(prepared: Prepared, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> CausalBase:
    """The prepared base, frozen, in eval mode, in its compute type.

    Raises BaseModelError where the folder holds no causal model, or one whose layers keep no keys and values.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    folder: Path = prepared.folder
    chosen = compute_dtype(dtype)
    try:
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[chosen], local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise BaseModelError(f"base model {prepared.name}: {folder} does not load as a causal language model: {error}") from error
    model.requires_grad_(False)
    model.eval()
    if torch.cuda.is_available():
        model.to("cuda")
    use_short_rows(model)
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(context, int):
        raise BaseModelError(f"base model {prepared.name}: its config.json states no context length (max_position_embeddings)")
    return CausalBase(model, tokenizer, prepared.ref, DTYPES[chosen], context)
