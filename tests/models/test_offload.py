"""Bases whose layers do not all fit: the same numbers, wherever the weights lie."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ptpipeline.errors import BaseModelError
from ptpipeline.models.base import prepare_folder
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.fetch import fetched, is_away
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, list_tensors
from ptpipeline.models.load import load_base
from ptpipeline.models.offload import (
    Rooms,
    count_weight_bytes,
    describe_placement,
    hold_weights,
    measure_rooms,
    place_layers,
)
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Member
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import FAMILIES, SEQ2SEQ_FAMILIES, SIZES, save_tokenizer
from tests.tuning.jobs import job

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ROWS = [Input([3, 1, 4, 1], [5], 0), Input([9, 2], [], 1), Input([6, 5, 3, 5, 8], [], 0)]


def deep_llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 6}, max_position_embeddings=128))


MODELS = FAMILIES | SEQ2SEQ_FAMILIES | {"deep llama": deep_llama}


def saved(folder: Path, name: str) -> Path:
    """A folder with a random model of that family, and a tokenizer."""
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def load(folder: Path, share: float, dtype: str = "float32") -> Any:
    """The base in that folder, with room for this share of its weights."""
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    room = share * stored / (2 if dtype == "bfloat16" else 1)
    return load_base(prepare_folder("large", folder, folder), dtype, Rooms(room))


def compute(base: FrozenBase, by_hand: bool = True) -> list[Tensor]:
    """States behind two prompts, and the prompts' gradients."""
    dice = torch.Generator().manual_seed(1)
    prompts = [torch.randn(length, 32, generator=dice).requires_grad_() for length in (5, 3)]
    states = base.compute_states(base.compute_prefix(prompts), ROWS) if by_hand else base.concatenate(prompts, ROWS)
    torch.autograd.backward((states.float() * torch.cos(torch.arange(32.0))).sum())
    return [states.detach(), *(torch.as_tensor(prompt.grad) for prompt in prompts)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def list_places(base: FrozenBase) -> list[str]:
    """Where each layer lies, in order."""
    return [place for name, place in base.model.hf_device_map.items() if name.rpartition(".")[2].isdigit()]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("deep llama", "float32"), ("gemma2", "bfloat16"), ("phi3", "float32"), ("gpt2", "float32"),
     ("t5 gated untied", "float32")],
)  # fmt: skip
def test_a_base_that_reads_layers_from_its_files_computes_the_same_bits(name: str, dtype: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, name)
    whole, partly = load(folder, 2, dtype), load(folder, 0.8, dtype)
    assert (whole.whole, partly.whole) == (True, False)
    with torch.backends.mkldnn.flags(enabled=False):  # oneDNN refuses bfloat16 under older instructions
        for by_hand in (True, False):
            assert_same(compute(partly, by_hand), compute(whole, by_hand))
        assert partly.decode(None, ROWS, 4) == whole.decode(None, ROWS, 4)
    assert (partly.digest_weights(), partly.known) == (whole.digest_weights(), whole.known)
    if isinstance(whole, CausalBase):
        assert (partly.fused is None) == (whole.fused is None)


def test_a_base_that_just_fits_lies_on_the_device(tmp_path: Path) -> None:
    prepared = prepare_folder("large", saved(tmp_path, "llama"), tmp_path)
    needed = count_weight_bytes(prepared.files, torch.float32)
    assert [load_base(prepared, "float32", Rooms(room)).whole for room in (needed, needed - 1)] == [True, False]


def test_weights_that_were_fetched_go_whatever_happens_meanwhile(tmp_path: Path) -> None:
    layer = load(saved(tmp_path, "gpt2"), 0.8).model.transformer.h[-1]
    seen: list[bool] = []

    def fail() -> None:
        with fetched(layer):
            seen.append(is_away(layer))
            raise ValueError("meanwhile")

    with pytest.raises(ValueError, match="meanwhile"):
        fail()
    assert (seen, is_away(layer)) == ([False], True)


def test_layers_outside_are_counted_by_where_they_lie() -> None:
    placement = {"a": "cuda:0", "b": "cpu", "c": "disk", "d": "disk"}
    assert "of its layers, 1 in memory and 2 in their files stay" in describe_placement(placement, GPU)
    assert "of its layers, 2 in their files stay" in describe_placement(placement | {"a": "cpu"}, CPU)


class Uneven(nn.Module):
    """Layers of four and of forty numbers."""

    _no_split_modules = ("Linear",)

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(2, 2, bias=False), nn.Linear(20, 2, bias=False)


def test_there_is_room_for_the_largest_layer_twice() -> None:
    """One that was fetched, and the one whose place it takes: 40 numbers of four bytes."""
    assert place_layers("large", Uneven(), GPU, Rooms(2 * 160 + 16))["small"] == "cuda:0"
    with pytest.raises(BaseModelError, match="do not fit into the memory"):
        place_layers("large", Uneven(), GPU, Rooms(2 * 160 - 1))


def test_the_first_layers_fill_the_device(tmp_path: Path) -> None:
    assert list_places(load(saved(tmp_path, "deep llama"), 0.8)) == ["cpu"] * 2 + ["disk"] * 4


def test_each_place_is_filled_to_its_last_byte_in_the_order_of_the_layers() -> None:
    empty = deep_llama()
    layer, whole = (sum(each.nbytes for each in part.parameters()) for part in (empty.model.layers[0], empty))
    outside = whole - 6 * layer
    for room, memory, places in (
        (2 * layer, 0, ["disk"] * 6),
        (3 * layer, 2 * layer, ["cuda:0", *["cpu"] * 2, *["disk"] * 3]),
        (3 * layer - 1, 2 * layer - 1, ["cpu", *["disk"] * 5]),
    ):
        placement = place_layers("large", empty, GPU, Rooms(outside + room, memory))
        assert [placement[f"model.layers.{index}"] for index in range(6)] == places
    with pytest.raises(BaseModelError, match="its embeddings and head alone do not fit"):
        place_layers("large", empty, GPU, Rooms(outside + 2 * layer - 1))


def test_layers_in_memory_beside_the_device_compute_the_same_bits(tmp_path: Path) -> None:
    """As beside a GPU, whose layers wait in the machine's memory."""
    from accelerate.hooks import attach_align_device_hook
    from accelerate.utils import OffloadedWeightsLoader

    folder = saved(tmp_path, "deep llama")
    whole, partly = load(folder, 2), load(folder, 2)
    model = partly.model
    loader = OffloadedWeightsLoader(state_dict={name: tensor.clone() for name, tensor in model.state_dict().items()})
    for index in (3, 5):
        layer = model.model.layers[index]
        attach_align_device_hook(layer, CPU, offload=True, weights_map=loader, module_name=f"model.layers.{index}")
    hold_weights(model, prepare_folder("large", folder, folder).files)
    assert not partly.whole
    for by_hand in (True, False):
        assert_same(compute(partly, by_hand), compute(whole, by_hand))
    assert partly.digest_weights() == whole.digest_weights()


def test_a_gang_trains_to_the_same_bits(tmp_path: Path) -> None:
    folder = saved(tmp_path, "deep llama")
    prompts = []
    for share in (2, 0.8):
        base = load(folder, share)
        jobs = [
            job(base, "a"),
            job(base, "b", 1, method="prefix", encoder_width=8),
            job(base, "c", 2, method="p_tuning"),
        ]
        members = run_gang(base, jobs, NoTracker(), lambda line: None).members
        assert [member.error for member in members] == [None] * 3
        prompts.append([tensor for member in members for tensor in best(member)])
    assert_same(*prompts)


def best(member: Member) -> list[Tensor]:
    return list_tensors(member.require_best())


def test_a_base_that_fits_has_no_hooks_and_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = load(saved(tmp_path, "llama"), 2)
    assert not any(hasattr(module, "_hf_hook") for module in base.model.modules())
    assert not caplog.records


def test_a_base_that_does_not_fit_says_so_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(saved(tmp_path, "deep llama"), 0.8)
    assert [record.getMessage() for record in caplog.records] == [
        "base model large: its weights do not fit into the memory of cpu; of its layers, 4 in their files stay "
        "outside, and each pass fetches them"
    ]


@pytest.mark.parametrize("name", ["deep llama", "gpt2"])
def test_weights_in_files_are_read_only_while_these_are_the_ones_that_were_hashed(name: str, tmp_path: Path) -> None:
    base = load(saved(tmp_path, name), 0.8)
    compute(base)
    os.utime(tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match="was changed since it was hashed"):
        compute(base)


def test_autograd_keeps_no_weights_until_the_backward_pass(tmp_path: Path) -> None:
    """A backward pass that reads them again notices that the file has changed since."""
    base = load(saved(tmp_path, "gpt2"), 0.8)
    prompts = [torch.zeros(3, 32).requires_grad_(), torch.zeros(2, 32).requires_grad_()]
    states = base.compute_states(base.compute_prefix(prompts), ROWS)
    os.utime(tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match="was changed since it was hashed"):
        states.sum().backward()


def test_a_gpu_is_filled_before_memory_and_memory_before_files() -> None:
    """Each layer of six takes 2 units, what is no layer some more, and two layers' room is left for fetched ones."""
    with torch.device("meta"):
        model = deep_llama()
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    outside = sum(parameter.nbytes for parameter in model.parameters()) - 6 * layer
    placement = place_layers("large", model, GPU, Rooms(outside + 5 * layer, 2 * layer))
    assert [placement[f"model.layers.{index}"] for index in range(6)] == ["cuda:0"] * 3 + ["cpu"] * 2 + ["disk"]
    others = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    assert {placement[name] for name in others} == {"cuda:0"}


def test_a_base_whose_embeddings_do_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="its embeddings and head alone do not fit into the memory of cpu"):
        load(saved(tmp_path, "deep llama"), 0.01)


def test_a_model_without_layers_that_transformers_names_is_refused() -> None:
    with pytest.raises(BaseModelError, match="transformers names no layers of Linear"):
        place_layers("large", nn.Linear(2, 2), CPU, Rooms(1))


class Named(Uneven):
    """Names layers that it does not have."""

    _no_split_modules = ("Block",)


def test_a_model_without_the_layers_that_it_names_is_refused() -> None:
    with pytest.raises(BaseModelError, match="transformers names no layers of Named"):
        place_layers("large", Named(), CPU, Rooms(1))


def test_without_accelerate_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(BaseModelError, match=r"pip install 'ptpipeline\[large\]'"):
        load(saved(tmp_path, "llama"), 0.8)


def test_weights_take_no_more_of_a_cpu_than_its_container_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptpipeline.models import memory

    (tmp_path / "memory.max").write_text("1000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert measure_rooms(CPU) == Rooms(800.0)
