"""What a frozen decoder computes, read from its configuration and modules: the passes by hand know these traits alone.

An architecture is one entry of ARCHITECTURES. A model with any trait that is not known here is declined by the trait's
name and runs through transformers' own layers.

Letters: H width, I width of the MLP, d a head's width, kv key/value heads with g query heads each.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ptpipeline.models.fetch import fetched, is_away
from ptpipeline.models.kernels import ACTIVATIONS
from ptpipeline.models.operands import Heads, Norm

FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # their frequencies do not change with the length


class Architecture(NamedTuple):
    """What no configuration states: where the norms stand, what is added to their weights, whether scores are capped.

    Norms stand before attention and MLP (on their input), after them (on their output), or around them (on both).
    """

    norms: Literal["before", "after", "around"] = "before"
    offset: float = 0.0
    capped: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(),
    "MinistralForCausalLM": Architecture(),
    "Qwen2ForCausalLM": Architecture(),
    "Qwen3ForCausalLM": Architecture(),
    "Phi3ForCausalLM": Architecture(),
    "GraniteForCausalLM": Architecture(),
    "SmolLM3ForCausalLM": Architecture(),
    "GemmaForCausalLM": Architecture(offset=1.0),
    "Gemma2ForCausalLM": Architecture("around", offset=1.0, capped=True),
    "Gemma3ForCausalLM": Architecture("around", offset=1.0),
    "Olmo2ForCausalLM": Architecture("after"),
    "Olmo3ForCausalLM": Architecture("after"),
}
NORM_NAMES = {  # before attention, after attention, before the MLP, after the MLP
    "before": ("input_layernorm", None, "post_attention_layernorm", None),
    "after": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "around": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


class UnknownTrait(Exception):
    """A model computes something that the passes by hand do not know; the message names it."""


class Map(NamedTuple):
    """A frozen linear map: weight [out, in], bias [out] or None."""

    weight: Tensor
    bias: Tensor | None


class Layer(NamedTuple):
    """A frozen decoder layer. Maps of the same input are one; the model's own are views of it.

    A norm that the architecture lacks is None.
    """

    norm: Norm | None
    attention: Map  # [(g + 2) kv d, H]: queries, keys, values
    query_norm: Norm | None  # over each head's d, or over all heads at once
    key_norm: Norm | None
    out: Map  # [H, g kv d]
    out_norm: Norm | None
    mlp_norm: Norm | None
    gate_up: Map  # [2 I, H]
    down: Map  # [H, I]
    down_norm: Norm | None


class Kind(NamedTuple):
    """How layers see positions: the name of their rotary embedding ("" if the model has one; None: no positions), and
    the window, the number of tokens that a token sees, itself among them (None: all before it).
    """

    rope: str | None
    window: int | None


class Layers:
    """The layers of a decoder, by index. One whose weights are outside of the device gets them when it is asked for."""

    def __init__(self, modules: Sequence[nn.Module], read: Callable[[int], Layer]) -> None:
        """`read` returns a layer by its index, whose module has its weights at that moment."""
        self._modules, self._read = modules, read
        with torch.inference_mode(False):  # else the joined weights could never take part in a backward pass
            self._layers = [None if is_away(module) else read(index) for index, module in enumerate(modules)]
        self._last: tuple[int, Layer] | None = None  # the one that was fetched last

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> Layer:
        index %= len(self)
        return self._layers[index] or self._fetch(index)

    def _fetch(self, index: int) -> Layer:
        if self._last is None or self._last[0] != index:
            self._last = None  # its memory is free for the next one
            with torch.inference_mode(False), fetched(self._modules[index]):
                self._last = index, self._read(index)
        return self._last[1]


class Traits(NamedTuple):
    """All that the passes compute with."""

    layers: Layers
    layer_kinds: list[int]
    norm: Norm
    kinds: tuple[Kind, ...]
    heads: Heads
    rotary: Any
    score_scale: float
    score_cap: float | None
    activation: str
    residual_scale: float
    embedding_scale: float


def read_traits(model: Any) -> Traits:
    """Return the traits of a frozen causal model, and join its maps in place, so that no weight is in memory twice.

    Raises UnknownTrait if the passes by hand do not compute what this model computes; then nothing was joined.
    """
    architecture = _find_architecture(model)
    config, body = model.config, model.base_model
    _check_config(config)
    attention = [layer.self_attn for layer in body.layers]
    groups, scale = config.num_key_value_heads, float(_only(attention, "scaling"))
    heads = Heads(0, groups, config.num_attention_heads // groups, int(_only(attention, "head_dim")))
    kinds = [_read_kind(config, index) for index in range(len(body.layers))]
    for layer in body.layers:
        _check_modules(layer, architecture)
    distinct = tuple(dict.fromkeys(kinds))
    with torch.inference_mode(False):
        norm = _read_norm(body.norm, architecture.offset)
    return Traits(
        layers=Layers(body.layers, lambda index: _read_layer(body.layers[index], architecture)),
        layer_kinds=[distinct.index(kind) for kind in kinds],
        norm=norm,
        kinds=distinct,
        heads=heads,
        rotary=body.rotary_emb,
        score_scale=scale,
        score_cap=config.attn_logit_softcapping if architecture.capped else None,
        activation=_activation_name(config),
        residual_scale=float(getattr(config, "residual_multiplier", 1.0)),
        embedding_scale=float(getattr(config, "embedding_multiplier", 1.0)),
    )


def _find_architecture(model: Any) -> Architecture:
    name, module = type(model).__name__, type(model).__module__
    if name not in ARCHITECTURES or not module.startswith("transformers.models."):
        raise UnknownTrait(f"architecture {name}")
    parameters = list(model.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        raise UnknownTrait("weights that train")
    if len({(parameter.dtype, parameter.device) for parameter in parameters if not parameter.is_meta}) > 1:
        raise UnknownTrait("weights of several types or on several devices")
    return ARCHITECTURES[name]


def _check_config(config: Any) -> None:
    if _activation_name(config) not in ACTIVATIONS:
        raise UnknownTrait(f"activation {_activation_name(config)}")
    if getattr(config, "use_bidirectional_attention", False):
        raise UnknownTrait("bidirectional attention")
    for rope in _list_ropes(config):
        if rope["rope_type"] not in (*FIXED_ROPES, "longrope"):
            raise UnknownTrait(f"rope_type {rope['rope_type']}")


def _activation_name(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _list_ropes(config: Any) -> list[Any]:
    """Return the settings of each rotary embedding; a model has one, or one per type of layer."""
    ropes = config.rope_parameters
    return [ropes] if "rope_type" in ropes else [ropes[kind] for kind in dict.fromkeys(config.layer_types)]


def read_longest(config: Any) -> int | None:
    """Return the length up to which `longrope` keeps its short frequencies; None if all frequencies are fixed."""
    ropes = getattr(config, "rope_parameters", None) or {}  # of the model, or of each type of its layers
    changing = [
        rope for rope in (ropes, *ropes.values()) if isinstance(rope, dict) and rope.get("rope_type") == "longrope"
    ]
    return min((int(rope["original_max_position_embeddings"]) for rope in changing), default=None)


def _read_kind(config: Any, index: int) -> Kind:
    types: list[str] = getattr(config, "layer_types", None) or []
    if types and types[index] not in ("full_attention", "sliding_attention"):
        raise UnknownTrait(f"layer type {types[index]}")
    window = getattr(config, "sliding_window", None)
    turned = getattr(config, "no_rope_layers", None)  # 1 for the layers that have positions
    rope = "" if "rope_type" in config.rope_parameters else types[index]
    return Kind(
        rope=None if turned and not turned[index] else rope,
        window=window if not types or types[index] == "sliding_attention" else None,
    )


def _only(modules: Sequence[Any], name: str) -> Any:
    """Return the value that all layers share."""
    values = {getattr(module, name) for module in modules}
    if len(values) > 1:
        raise UnknownTrait(f"layers of different {name}")
    return values.pop()


def _check_modules(layer: Any, architecture: Architecture) -> None:
    """Raise UnknownTrait unless the layer consists of the maps and norms that are read, each of its plain kind."""
    known = {name for name in NORM_NAMES[architecture.norms] if name}
    known |= {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm")}
    known |= {f"mlp.{name}" for name in ("gate_proj", "up_proj", "gate_up_proj", "down_proj")}
    for name, _ in layer.named_parameters():
        module = name.rpartition(".")[0]
        if module not in known:
            raise UnknownTrait(f"parameter {name}")
        if module.endswith("_proj") and type(layer.get_submodule(module)) is not nn.Linear:
            raise UnknownTrait(f"{type(layer.get_submodule(module)).__name__} as {module}")


def _read_layer(layer: Any, architecture: Architecture) -> Layer:
    attention, mlp, offset = layer.self_attn, layer.mlp, architecture.offset
    before, after, mlp_before, mlp_after = (
        _read_norm(getattr(layer, name), offset) if name else None for name in NORM_NAMES[architecture.norms]
    )
    query_norm, key_norm = (
        _read_norm(getattr(attention, name), offset) if hasattr(attention, name) else None
        for name in ("q_norm", "k_norm")
    )
    return Layer(
        norm=before,
        attention=_join([getattr(attention, name) for name in _present(attention, "qkv_proj", "q_proj k_proj v_proj")]),
        query_norm=query_norm,
        key_norm=key_norm,
        out=Map(attention.o_proj.weight, attention.o_proj.bias),
        out_norm=after,
        mlp_norm=mlp_before,
        gate_up=_join([getattr(mlp, name) for name in _present(mlp, "gate_up_proj", "gate_proj up_proj")]),
        down=Map(mlp.down_proj.weight, mlp.down_proj.bias),
        down_norm=mlp_after,
    )


def _present(module: Any, joined: str, parts: str) -> list[str]:
    return [joined] if hasattr(module, joined) else parts.split()


def _read_norm(module: Any, offset: float) -> Norm:
    """Return an RMSNorm's weight, with what the architecture adds to it, and its epsilon."""
    epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    if not offset:
        return Norm(module.weight, epsilon)
    wide = torch.float64 if module.weight.dtype == torch.float64 else torch.float32  # 1 + w in bfloat16 loses w
    return Norm(module.weight.to(wide) + offset, epsilon)


def _join(maps: Sequence[nn.Linear]) -> Map:
    """Return the maps as one [out, in]; their own weights and biases become views of it."""
    if len(maps) == 1:
        return Map(maps[0].weight, maps[0].bias)
    return Map(_join_tensors([part.weight for part in maps]), _join_biases(maps))


def _join_biases(maps: Sequence[nn.Linear]) -> Tensor | None:
    biases = [part.bias for part in maps]
    if all(bias is None for bias in biases):
        return None
    return _join_tensors(biases)


def _join_tensors(parts: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
        part.data = view
    return whole
