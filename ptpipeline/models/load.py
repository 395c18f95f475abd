"""Loads a prepared base model: frozen, in eval mode, in its compute type, as the family of its configuration."""

import logging
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from ptpipeline.errors import BaseModelError
from ptpipeline.foreign import parsing
from ptpipeline.hub import check_variables
from ptpipeline.models.attention import use_short_rows
from ptpipeline.models.base import PreparedBase
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.fetch import is_away
from ptpipeline.models.fingerprint import UNSTATED_LENGTH
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.guards import check_causal
from ptpipeline.models.offload import (
    Placement,
    Rooms,
    count_weight_bytes,
    describe_placement,
    hold_weights,
    measure_rooms,
    place_layers,
)
from ptpipeline.models.plain import find_controls
from ptpipeline.models.seq2seq import FAMILIES, Seq2SeqBase
from ptpipeline.models.traits import read_longest
from ptpipeline.models.vocabulary import Vocabulary
from ptpipeline.models.weights import Stored, read_headers
from ptpipeline.settings import COMPUTE_TYPES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # the last two: MPT, BLOOM
T5_LENGTH = 512  # tokens of a row while T5 was trained (Raffel et al. 2020, section 3.1.2)
_ODD_TEXT = "a \u00e9\u4e2d\U0001f600\ue000"  # letters that many vocabularies lack
_CLOSED = {"local_files_only": True, "trust_remote_code": False}
_WHOLE = {"use_safetensors": True, "output_loading_info": True}

log = logging.getLogger(__name__)


def load_base(prepared: PreparedBase, dtype: str, rooms: Rooms | None = None) -> FrozenBase:
    """Return the prepared base model as its family, to compute in that type.

    rooms: bytes that weights may take; by default those of this machine. Layers that do not fit stay outside.

    Raises BaseModelError if the folder holds no such model or changes meanwhile, if it is an encoder-decoder other than
    T5, if no prompt can stand before its texts, if its configuration states no context length, if the type is none to
    compute in, or if the model is too large for this machine.
    """
    if dtype not in COMPUTE_TYPES:
        raise BaseModelError(
            f"base model {prepared.name}: nothing computes in {dtype[:20]!r}; expected {' or '.join(COMPUTE_TYPES)}"
        )
    check_variables()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    chosen = DTYPES[dtype]
    with prepared.files.view() as folder:
        with _reading(prepared, "config.json", "it states no language model that transformers knows; choose another"):
            config = AutoConfig.from_pretrained(folder, **_CLOSED)
            _check_family(prepared.name, config)
            config.return_dict = True  # a saved `false` would change how layers answer
            stored = read_headers(prepared.files.weights)
            _check_stored(f"base model {prepared.name}: {prepared.folder}", config, stored)
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with _reading(prepared, "its weights", "config.json asks for what cannot be loaded; choose another model"):
            placement = _place(prepared, kind, config, chosen, rooms)
            options: dict[str, Any] = {"dtype": chosen, "device_map": placement, "ignore_mismatched_sizes": True}
            model, loaded = kind.from_pretrained(folder, config=config, **options, **_WHOLE, **_CLOSED)
        _check_whole(f"base model {prepared.name}: {prepared.folder}", loaded)
        with _reading(
            prepared, "its tokenizer", "tokenizer.json is damaged or of a newer transformers; fetch it again"
        ):
            tokenizer = AutoTokenizer.from_pretrained(folder, **_CLOSED)
        tokenizer.name_or_path = str(prepared.folder)  # the view is gone soon
    model.requires_grad_(False)
    model.eval()
    if placement:
        hold_weights(model, prepared.files)
    _hold(model, {tensor.dtype for tensor in stored.values()})
    prepared.files.check_unchanged()
    with _reading(prepared, "its layers", "this model is built in a way that is not supported; choose another"):
        return _build(prepared, model, tokenizer, chosen)


def load_vocabulary(prepared: PreparedBase) -> Vocabulary:
    """Return the tokenizer and the embeddings of a causal base, in their stored type; no layer is read.

    Raises BaseModelError if the folder holds no such model or changes meanwhile, or if it is an encoder-decoder.
    """
    check_variables()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    with prepared.files.view() as folder:
        with _reading(prepared, "config.json", "it states no language model that transformers knows; choose another"):
            config = AutoConfig.from_pretrained(folder, **_CLOSED)
            _refuse_encoder(prepared.name, config)
            text = config.get_text_config()
            text.num_hidden_layers = 0
            if getattr(text, "layer_types", None) is not None:
                text.layer_types = []
        with _reading(prepared, "its embeddings", "config.json asks for what cannot be loaded; choose another model"):
            model, loaded = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype="auto", **_WHOLE, **_CLOSED
            )
        _check_whole(f"base model {prepared.name}: {prepared.folder}", loaded)
        with _reading(
            prepared, "its tokenizer", "tokenizer.json is damaged or of a newer transformers; fetch it again"
        ):
            tokenizer = AutoTokenizer.from_pretrained(folder, **_CLOSED)
        tokenizer.name_or_path = str(prepared.folder)  # the view is gone soon
    model.set_output_embeddings(torch.nn.Identity())  # often as large as the embeddings, and nothing is computed
    model.requires_grad_(False)
    model.eval()
    embedding = model.get_input_embeddings().weight
    embedding.data = embedding.data.clone()  # out of the file, onto which transformers maps it
    prepared.files.check_unchanged()
    context = _read_context_length(prepared.name, config, tokenizer)
    known: dict[str, Any] = {"earlier": prepared.earlier, "chat": prepared.files.read_chat_template()}
    vocabulary = Vocabulary(model, tokenizer, prepared.ref, embedding.dtype, context, **known)
    _check_vocabulary(prepared, vocabulary)
    return vocabulary


def _refuse_encoder(name: str, config: Any) -> None:
    if config.is_encoder_decoder:
        raise BaseModelError(
            f"base model {name}: it is an encoder-decoder, whose prompts stand before the encoder's input; vLLM takes "
            "embeddings for causal models alone: serve it here, without --upstream"
        )


@contextmanager
def _reading(prepared: PreparedBase, part: str, fix: str) -> Iterator[None]:
    """Raise whatever transformers raises about that part of the base as a BaseModelError, in its own words."""
    with parsing(f"base model {prepared.name}: {prepared.folder}: {part}", fix, BaseModelError, quoting=True):
        yield


def _check_whole(where: str, loaded: Mapping[str, Any]) -> None:
    """Raise BaseModelError if the files hold no values for some weights: transformers draws these at random.

    loaded: what `from_pretrained` tells of loading.
    """
    lacking = [f"{name} is in no file" for name in sorted(loaded["missing_keys"])]
    lacking += [
        f"{name} has shape {list(stored)} instead of {list(wanted)}"
        for name, stored, wanted in sorted(loaded["mismatched_keys"])
    ]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f", and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise BaseModelError(
            f"{where}: config.json asks for other weights than are there: {shown}; fetch the model again, or choose "
            "one that was made for language modelling"
        )


def _check_stored(where: str, config: Any, stored: Mapping[str, Stored]) -> None:
    """Raise BaseModelError for quantised weights that transformers would take for plain numbers, without their scales:
    it only warns of a kind of quantisation that it does not know.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    quantised = getattr(config, "quantization_config", None)
    if quantised and AutoHfQuantizer.supports_quant_method(quantised):
        return
    for name, tensor in sorted(stored.items()):
        if name.endswith("weight") and tensor.dtype not in _STORED_TYPES:
            raise BaseModelError(
                f"{where}: {name} is stored as {tensor.dtype}, and nothing here knows how it was quantised; expected "
                f"{', '.join(_STORED_TYPES)}: take the model before it was quantised"
            )


def _check_state(name: str, model: Any) -> None:
    """Raise BaseModelError for a model that keeps a state of what it read, as Mamba does and hybrids do."""
    if getattr(model, "_is_stateful", False):
        raise BaseModelError(
            f"base model {name}: {type(model).__name__} has layers that keep a state instead of a key and a value for "
            "each token, so no prompt can stand before them; take a base whose layers all attend"
        )


def _check_vocabulary(prepared: PreparedBase, base: Vocabulary) -> None:
    """Raise BaseModelError if prompts would not be as wide as the files say, or if a text can have a token without an
    embedding.

    A control token that nobody writes may lack one: fine-tuners add such tokens for pads.
    """
    where = f"base model {prepared.name}: {prepared.folder}"
    rows, width = base.model.get_input_embeddings().weight.shape
    if width != base.ref.hidden_size:
        raise BaseModelError(
            f"{where}: embeddings are {width} wide, and config.json states {base.ref.hidden_size}; choose another base"
        )
    written = base.chat.text if base.chat else ""
    silent = {token for token, text in find_controls(base.tokenizer).items() if text not in written}
    lacking = {token for token in base.tokenizer.get_vocab().values() if token >= rows}
    with _reading(prepared, "its tokenizer", "it cannot read every text; take the one that the model was trained with"):
        lacking -= silent - set(base.encode(_ODD_TEXT, True))
    if lacking:
        raise BaseModelError(
            f"{where}: the tokenizer has {len(lacking)} tokens, such as {min(lacking)}, beyond the {rows} embeddings "
            "of the model; take the tokenizer that it was trained with, or resize_token_embeddings and save it"
        )


def _build(prepared: PreparedBase, model: Any, tokenizer: Any, chosen: torch.dtype) -> FrozenBase:
    """Return the loaded model as its family."""
    config = model.config
    _check_state(prepared.name, model)
    context = _read_context_length(prepared.name, config, tokenizer)
    known: dict[str, Any] = {"earlier": prepared.earlier, "chat": prepared.files.read_chat_template()}
    if config.is_encoder_decoder:
        if model.device.type == "cpu" and chosen == torch.bfloat16:
            model.set_attn_implementation("eager")  # .8 of the fused kernel's time, as near to the float32 gradient
        start = _read_start_token(prepared.name, model)
        encoder_decoder = Seq2SeqBase(model, tokenizer, prepared.ref, chosen, context, start, **known)
        _check_vocabulary(prepared, encoder_decoder)
        return encoder_decoder
    use_short_rows(model)
    base = CausalBase(model, tokenizer, prepared.ref, chosen, context, **known)
    _check_vocabulary(prepared, base)
    if base.fused is None:  # of the architectures that the fast passes know, tests say so
        check_causal(base)
    return base


def _hold(model: Any, stored: Set[str]) -> None:
    """Move the weights to the GPU if there is one, else out of the file, onto which transformers maps them: whoever
    wrote to it would change the model in memory. What is of none of the `stored` types was converted, and so copied.
    """
    if torch.cuda.is_available():
        if not is_away(model):
            model.to("cuda")
        return
    mapped = {_STORED_TYPES.get(name) for name in stored}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in mapped:
            tensor.data = tensor.data.clone()


def _place(prepared: PreparedBase, kind: Any, config: Any, dtype: torch.dtype, rooms: Rooms | None) -> Placement | None:
    """Return where the parts of a base lie that does not fit into its device, and say so; None if it fits."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    rooms = rooms or measure_rooms(device)
    if count_weight_bytes(prepared.files, dtype) <= rooms.device:
        return None
    if find_spec("accelerate") is None:
        raise BaseModelError(
            f"base model {prepared.name}: its weights do not fit into the memory of {device}, and without accelerate "
            "none can stay outside; run `pip install 'ptpipeline[large]'`"
        )
    with torch.device("meta"):
        empty = kind.from_config(config, dtype=dtype)
    placement = place_layers(prepared.name, empty, device, rooms)
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it would say the same once more
    log.warning("base model %s: %s, and each pass fetches them", prepared.name, describe_placement(placement, device))
    return placement


def _check_family(name: str, config: Any) -> None:
    if config.is_encoder_decoder and config.model_type not in FAMILIES:
        raise BaseModelError(
            f"base model {name}: {config.model_type} is an encoder-decoder that is not supported "
            f"({' and '.join(FAMILIES)} are); choose one of these or a causal model"
        )


def _read_context_length(name: str, config: Any, tokenizer: Any) -> int:
    """Return the most tokens that the model reads; for T5, whose positions have no bound, those it was trained on."""
    length: int = tokenizer.model_max_length
    if config.is_encoder_decoder and length < UNSTATED_LENGTH:
        return length
    stated = next((own for field in _CONTEXTS if (own := getattr(config, field, None))), None)
    if isinstance(stated, int) and stated > 0:
        longest = read_longest(config)  # beyond it the keys of a prompt would be rotated otherwise
        return stated if longest is None else min(stated, longest)
    if config.is_encoder_decoder:
        return T5_LENGTH
    raise BaseModelError(f"base model {name}: its config.json states no context length; add max_position_embeddings")


def _read_start_token(name: str, model: Any) -> int:
    for config in (model.config, model.generation_config):
        start = getattr(config, "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    raise BaseModelError(
        f"base model {name}: its config.json states no decoder_start_token_id; add it (0, the pad token, for T5)"
    )
