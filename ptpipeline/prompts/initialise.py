"""Makes the first value of a soft prompt, in the base model's own embedding space.

Never N(0, 1): that is many times the size of a token's embedding, and the prompt never recovers from it.

Letters: P virtual tokens, H width, L layers, kv key/value heads, d a head's width.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from ptpipeline.errors import ArtifactError, BaseModelError, DataError
from ptpipeline.foreign import check_file, parsing, shorten
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues, SoftPrompt, count_virtual_tokens, list_tensors, rebuild
from ptpipeline.prompts.artifact import MAX_FOREIGN_BYTES, MAX_HEADER_BYTES, parse_header
from ptpipeline.task.recipe import TextInit, Tune

SAMPLED_ROWS = (
    5000  # tokens; Lester et al. 2021, section 3.2: the most frequent ones, which BPE vocabularies list first
)


def make_initial_prompt(
    base: FrozenBase, tune: Tune, labels: Mapping[str, str], given: SoftPrompt | None = None
) -> SoftPrompt:
    """Return the recipe's first prompt in float32: embeddings [P, H], or for `prefix` keys and values of such tokens.

    `given` is the prompt of the version or file that the recipe names. Raises DataError if that, the text or the labels
    do not fill P tokens.
    """
    if given is not None:
        _check_given(base, tune, given)
        given = rebuild(given, [tensor.float() for tensor in list_tensors(given)])  # in 16 bit AdamW's epsilon is 0
    embeddings = given if given is not None else _draw(base, tune, labels)
    if tune.method != "prefix" or isinstance(embeddings, KeyValues):
        return embeddings
    return compute_activations(base, embeddings)


def compute_activations(base: FrozenBase, embeddings: Tensor) -> KeyValues:
    """Return keys and values [L, kv, P, d] of tokens [P, H] in every layer (Li & Liang 2021, section 5.3, for words).

    Raises BaseModelError for an encoder-decoder, whose prompts have none, and if keys and values differ in shape.
    """
    if base.model.config.is_encoder_decoder:
        raise BaseModelError(
            f"tune.method: prefix is keys and values in every layer of a causal model, {base.ref.name} is an "
            "encoder-decoder; set it to `prompt` or `p_tuning`"
        )
    with torch.inference_mode():
        tensors = [tensor[0].float().cpu() for tensor in base.compute_prefix([embeddings]).tensors]  # [kv, P, d] each
    half = len(tensors) // 2
    if len(shapes := {(len(tensor), tensor.shape[-1]) for tensor in tensors}) > 1:  # kv and d
        listed = " and ".join(f"{heads} heads of {width}" for heads, width in sorted(shapes))
        raise BaseModelError(
            f"tune.method: a prefix has keys and values of one shape in all layers, and those of {base.ref.name} are "
            f"{listed}; set it to `prompt` or `p_tuning`"
        )
    return KeyValues(torch.stack(tensors[:half]).clone(), torch.stack(tensors[half:]).clone())


def _draw(base: FrozenBase, tune: Tune, labels: Mapping[str, str]) -> Tensor:
    count, seed = tune.num_virtual_tokens, tune.seed
    if isinstance(tune.init, TextInit):
        return _embed(base, tokenize_text(base, tune.init.text, count))
    if tune.init == "uniform":
        return draw_uniform(base, count, seed)
    if tune.init == "xavier":
        return draw_xavier(base, count, seed)
    if tune.init == "class_labels":
        return embed_labels(base, labels, count, seed)
    return _embed(base, sample_vocabulary(base, count, seed))


def _embed(base: FrozenBase, ids: Tensor) -> Tensor:
    return base.embed(ids).detach().float().cpu()


def draw_uniform(base: FrozenBase, count: int, seed: int) -> Tensor:
    """Return [P, H] uniform numbers with the standard deviation of the base's embedding table.

    Lester et al. 2021 draw from [-.5, .5], the scale of T5's table; other tables differ by up to fifty times.
    """
    table = _embed(base, torch.arange(min(SAMPLED_ROWS, base.model.get_input_embeddings().weight.shape[0])))
    return _draw_between(math.sqrt(3) * float(table.std()), (count, table.shape[1]), seed)


def draw_xavier(base: FrozenBase, count: int, seed: int) -> Tensor:
    """Return [P, H] uniform numbers within sqrt(6 / (P + H)) (Glorot & Bengio 2010, equation 16)."""
    width = base.ref.hidden_size
    return _draw_between(math.sqrt(6 / (count + width)), (count, width), seed)


def _draw_between(bound: float, shape: tuple[int, int], seed: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * bound


def sample_vocabulary(base: FrozenBase, count: int, seed: int) -> Tensor:
    """Return [P] distinct ids from the first 5,000 that are not special tokens; repeated only if P is larger."""
    special = set(base.tokenizer.all_special_ids)
    count_embedded = min(len(base.tokenizer), base.model.get_input_embeddings().weight.shape[0])
    pool = torch.tensor(
        [i for i in range(min(SAMPLED_ROWS + len(special), count_embedded)) if i not in special][:SAMPLED_ROWS]
    )
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-count // len(pool))
    picks = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(max(1, rounds))])[:count]
    return pool[picks]


def tokenize_text(base: FrozenBase, text: str, count: int) -> Tensor:
    """Return [P] ids of the text without special tokens, repeated or cut to `count`."""
    ids = base.encode(text, False)
    if not ids:
        raise DataError(f"tune.init.text: {text!r} has no tokens for {base.ref.name}; give a text with words")
    return torch.tensor((ids * -(-count // len(ids)))[:count])


def embed_labels(base: FrozenBase, labels: Mapping[str, str], count: int, seed: int) -> Tensor:
    """Return [P, H]: one token per label, the mean of its word pieces, then tokens of sampled vocabulary.

    Lester et al. 2021, section 3.2.
    """
    if not labels:
        raise DataError(
            "tune.init: class_labels, but the task has no labels; set it to `sampled_vocab`, or {text: ...}"
        )
    if len(labels) > count:
        raise DataError(
            f"tune.init: class_labels needs a virtual token for each of the {len(labels)} labels, "
            f"num_virtual_tokens is {count}; raise it"
        )
    ordered = [words for _, words in sorted(labels.items())]  # a recipe does not state their order
    means = [_embed(base, torch.tensor(base.encode(words, False))).mean(0) for words in ordered]  # [H] each
    return torch.cat([torch.stack(means), _embed(base, sample_vocabulary(base, count - len(labels), seed))])


def read_tensor(path: Path) -> Tensor:
    """Return the prompt [P, H] of a `.npy` file, or `embeddings` of a `.safetensors` file.

    Raises DataError if it holds none.
    """
    with parsing(
        f"{path}: no readable prompt", "expected a tensor [P, H], named `embeddings` in a .safetensors file", DataError
    ):
        if path.suffix == ".npy":
            check_file(path, MAX_FOREIGN_BYTES, DataError)
            mapped = np.lib.format.open_memmap(path, mode="r")  # a header beyond the file's size allocates nothing
            tensor = torch.from_numpy(np.array(mapped))
        else:
            try:
                tensor = read_tensor_file(path, "embeddings")
            except ArtifactError as error:
                raise DataError(f"{error}; expected a tensor [P, H] named `embeddings`") from None
    if tensor.ndim != 2 or not tensor.is_floating_point() or tensor.itemsize < 2 or not torch.isfinite(tensor).all():
        raise DataError(
            f"{path}: found {tensor.dtype} {list(tensor.shape)}; expected finite floating-point numbers [P, H]"
        )
    return tensor.float()


def read_tensor_file(path: Path, name: str, alone: bool = False) -> Tensor:
    """Return one tensor of a safetensors file; its sizes are checked before anything is allocated.

    Raises ArtifactError if the file is too large, truncated, malformed or has no such tensor, or others beside it
    although it should be `alone`; NotFound if it cannot be read.
    """
    size = check_file(path, MAX_FOREIGN_BYTES)
    with parsing(str(path), "it is truncated or altered"):
        with path.open("rb") as file:
            names = parse_header(file.read(8 + MAX_HEADER_BYTES), size)
        if name not in names or (alone and len(names) > 1):
            beside = " alone (no trained layers beside it)" if alone else ""
            raise ArtifactError(
                f"{path}: holds {shorten(', '.join(sorted(names)[:5]))[1:-1] or 'nothing'}; expected {name}{beside}"
            )
        with safetensors.safe_open(path, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor


def _check_given(base: FrozenBase, tune: Tune, given: SoftPrompt) -> None:
    if isinstance(given, KeyValues) and tune.method != "prefix":
        raise DataError(
            f"tune.init: keys and values of a prefix cannot start the embeddings of `{tune.method}`; name a "
            "version that has embeddings"
        )
    if not isinstance(given, KeyValues) and given.shape[1] != base.ref.hidden_size:
        raise DataError(
            f"tune.init: the given prompt is {given.shape[1]} wide, {base.ref.name} is {base.ref.hidden_size} "
            "wide; give one of this base"
        )
    if count_virtual_tokens(given) != tune.num_virtual_tokens:
        raise DataError(
            f"tune.num_virtual_tokens: {tune.num_virtual_tokens}, but the recipe starts from a prompt of "
            f"{count_virtual_tokens(given)} tokens; make them equal"
        )
