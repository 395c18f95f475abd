"""What a gateway loads of a base: tokenizer and embeddings, and no layer."""

import copy
from pathlib import Path

import pytest
import torch

from ptpipeline.errors import BaseModelError
from ptpipeline.models.base import prepare_folder
from ptpipeline.models.load import load_vocabulary
from tests.models.families import FAMILIES, SEQ2SEQ_FAMILIES, save_tokenizer


def saved(model: torch.nn.Module, folder: Path) -> Path:
    """The folder of a base with that model, and a tokenizer."""
    model.save_pretrained(folder / "base")  # type: ignore[operator]
    save_tokenizer(folder / "base")
    return folder / "base"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_embeddings_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name]()
    loaded = load_vocabulary(prepare_folder(name, saved(copy.deepcopy(model), tmp_path), tmp_path / "home"))
    ids = torch.arange(3, 97)
    assert torch.equal(loaded.embed(ids), model.get_input_embeddings()(ids))
    table = model.get_input_embeddings().weight.numel()
    others = sum(tensor.numel() for tensor in loaded.model.parameters()) - table
    assert others <= 2 * 32 + 128 * 32  # a last norm, and GPT-2's table of positions


def test_the_table_is_that_of_the_file_as_it_was_hashed(tmp_path: Path) -> None:
    prepared = prepare_folder("llama", saved(FAMILIES["llama"](), tmp_path), tmp_path / "home")
    loaded = load_vocabulary(prepared)
    before = loaded.embed(torch.arange(97)).clone()
    with (prepared.folder / "model.safetensors").open("r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))  # behind the header
        file.write(bytes(prepared.files.states[0][2] - file.tell()))
    assert torch.equal(loaded.embed(torch.arange(97)), before)
    with pytest.raises(BaseModelError, match="was changed since it was hashed"):
        load_vocabulary(prepared)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    folder = saved(SEQ2SEQ_FAMILIES["t5 relu tied"](), tmp_path)
    with pytest.raises(BaseModelError, match="vLLM takes embeddings for causal models alone"):
        load_vocabulary(prepare_folder("t5", folder, tmp_path / "home"))


def test_a_base_without_embeddings_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(FAMILIES["llama"](), tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"embed_tokens\.weight is in no file"):
        load_vocabulary(prepare_folder("llama", folder, tmp_path / "home"))
