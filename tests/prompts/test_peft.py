"""PEFT's folders: what we write, PEFT computes the same with; what PEFT wrote, we read to the same logits; PEFT is the
oracle.
"""

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from ptpipeline.errors import ArtifactError, NotFound, PtpError
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues, SoftPrompt, list_tensors
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.prompts.peft import AdapterBase, build_npy_files, build_peft_files, read_foreign
from tests.models.families import family, seq2seq_family
from tests.prompts.adapters import ours, saved_by_peft, theirs, theirs_of

CAUSAL = AdapterBase("somewhere/base", None, False)
SEQ2SEQ = AdapterBase("somewhere/base", None, True)


def embeddings(base: FrozenBase, count: int = 3) -> torch.Tensor:
    return base.embed(torch.tensor([7, 30, 61, 12][:count])).detach().float() * 1.3


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return folder


def edited(folder: Path, **changes: object) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3 sliding", "mistral sliding"])
def test_peft_computes_the_same_with_an_exported_prompt(tmp_path: Path, name: str) -> None:
    base = family(name, torch.float32)
    prompt = embeddings(base)
    written(tmp_path, build_peft_files(prompt, CAUSAL))
    torch.testing.assert_close(theirs(base, tmp_path), ours(base, prompt), rtol=1e-5, atol=1e-5)
    assert (theirs(base, tmp_path) - ours(base, prompt.flip(0))).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_computes_the_same_with_an_exported_prefix(tmp_path: Path, name: str) -> None:
    base = family(name, torch.float32)
    prefix = compute_activations(base, embeddings(base))
    shuffled = KeyValues(
        prefix.key + torch.randn_like(prefix.key), prefix.value + torch.randn_like(prefix.value)
    )  # nothing that a layout could confuse is alike
    written(tmp_path, build_peft_files(shuffled, CAUSAL))
    torch.testing.assert_close(theirs(base, tmp_path), ours(base, shuffled), rtol=1e-5, atol=1e-5)
    assert (theirs(base, tmp_path) - ours(base, KeyValues(shuffled.value, shuffled.key))).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["t5 relu tied", "t5 gated untied"])
def test_peft_computes_the_same_before_an_encoder(tmp_path: Path, name: str) -> None:
    base = seq2seq_family(name, torch.float32)
    prompt = embeddings(base)
    written(tmp_path, build_peft_files(prompt, SEQ2SEQ))
    assert load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].shape == (3, 32)
    torch.testing.assert_close(theirs(base, tmp_path), ours(base, prompt), rtol=1e-5, atol=1e-5)


ADAPTERS = {
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p_tuning mlp": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "p_tuning lstm": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16, encoder_reparameterization_type="LSTM"
    ),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix projected": peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=16
    ),
}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_of_peft_is_read_to_the_same_logits(tmp_path: Path, name: str, kind: str) -> None:
    base = family(name, torch.float32)
    model = saved_by_peft(base, copy.deepcopy(ADAPTERS[kind]), tmp_path)
    found = read_foreign(tmp_path)
    assert (found.method, found.placement, found.encoder_decoder) == (kind.split()[0], "before_bos", False)
    torch.testing.assert_close(
        ours(base, found.prompt), theirs_of(model, [5, 17, 40, 8, 23], [3, 60]).detach(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("submodules", [None, 1])
def test_of_an_encoder_decoders_doubled_rows_those_that_count_are_read(tmp_path: Path, submodules: int | None) -> None:
    base = seq2seq_family("t5 relu tied", torch.float32)
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_transformer_submodules=submodules
    )
    model = saved_by_peft(base, config, tmp_path)
    found = read_foreign(tmp_path)
    assert isinstance(found.prompt, torch.Tensor)
    assert len(found.prompt) == 4
    assert bool(found.notes) == (submodules is None)
    torch.testing.assert_close(
        ours(base, found.prompt), theirs_of(model, [5, 17, 40, 8, 23], [3, 60]).detach(), rtol=1e-5, atol=1e-5
    )


def test_an_encoder_decoder_that_states_no_number_of_stacks_has_two(tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    saved_by_peft(seq2seq_family("t5 relu tied", torch.float32), config, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_transformer_submodules": None}))
    stored = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert len(stored) == 8
    assert torch.equal(torch.as_tensor(read_foreign(tmp_path).prompt), stored[:4])


@pytest.mark.parametrize("prefix", [False, True])
def test_out_and_in_again_is_the_same_tensor(tmp_path: Path, prefix: bool) -> None:
    base = family("llama", torch.float32)
    prompt: SoftPrompt = compute_activations(base, embeddings(base)) if prefix else embeddings(base)
    found = read_foreign(written(tmp_path / "a", build_peft_files(prompt, CAUSAL)))
    assert all(torch.equal(one, two) for one, two in zip(list_tensors(found.prompt), list_tensors(prompt), strict=True))
    assert found.named_base == "somewhere/base"


def test_an_array_is_written_and_read(tmp_path: Path) -> None:
    prompt = embeddings(family("llama", torch.float32))
    found = read_foreign(written(tmp_path, build_npy_files(prompt.half())) / "embeddings.npy")
    assert torch.equal(found.prompt, prompt.half().float())  # type: ignore[arg-type]
    assert (found.method, found.placement, found.named_base) == ("prompt", None, None)


def test_keys_and_values_are_two_arrays(tmp_path: Path) -> None:
    base = family("llama", torch.float32)
    prefix = compute_activations(base, embeddings(base))
    files = build_npy_files(prefix)
    assert np.array_equal(np.load(io.BytesIO(files["prefix_key.npy"])), prefix.key.numpy())
    assert np.array_equal(np.load(io.BytesIO(files["prefix_value.npy"])), prefix.value.numpy())


# ---------------------------------------------------------------- refusals


def swapped(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def only_a_pickle(folder: Path) -> Path:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
    return folder


def truncated(folder: Path) -> Path:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    return folder


def nameless(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("[1]")
    return folder


ROWS = torch.ones(3, 32)


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        (only_a_pickle, ArtifactError, "a pickle can run code.*save_pretrained"),
        (truncated, ArtifactError, "truncated or altered"),
        (nameless, ArtifactError, "expected a JSON object with `peft_type`"),
        (
            lambda f: edited(f, peft_type="LORA"),
            ArtifactError,
            "'LORA', which cannot be imported as a soft prompt.*PROMPT_TUNING, P_TUNING, PREFIX_TUNING",
        ),
        (lambda f: edited(f, task_type="SEQ_CLS"), ArtifactError, "task_type: .*CAUSAL_LM.*found 'SEQ_CLS'"),
        (lambda f: edited(f, num_virtual_tokens=4), ArtifactError, r"are \[3, 32\], .* states \[4, 32\]"),
        (
            lambda f: edited(f, num_virtual_tokens=10**9),
            ArtifactError,
            "num_virtual_tokens: .*less than or equal to 1000",
        ),
        (lambda f: edited(f, num_virtual_tokens="3"), ArtifactError, "num_virtual_tokens: .*valid integer"),
        (lambda f: edited(f, peft_type="PREFIX_TUNING"), ArtifactError, "prefix tuning needs num_layers"),
        (lambda f: swapped(f, prompt_embeddings=ROWS * torch.nan), ArtifactError, "not all finite"),
        (
            lambda f: swapped(f, prompt_embeddings=ROWS.long()),
            ArtifactError,
            "not all finite numbers; expected finite float16",
        ),
        (
            lambda f: swapped(f, prompt_embeddings=ROWS.to(torch.float8_e4m3fn)),
            ArtifactError,
            "are torch.float8_e4m3fn .*expected finite float16",
        ),
        (lambda f: swapped(f, prompt_embeddings=ROWS[0]), ArtifactError, r"are \[32\]"),
        (lambda f: swapped(f, prompt_embeddings=ROWS, head=ROWS * 2), ArtifactError, "holds head, prompt_embeddings"),
        (lambda f: f / "elsewhere", NotFound, "no prompt to import"),
    ],
)
def test_what_is_no_sound_adapter_is_refused(
    tmp_path: Path, spoil: Callable[[Path], Path], error: type[PtpError], sentence: str
) -> None:
    folder = written(tmp_path / "a", build_peft_files(embeddings(family("llama", torch.float32)), CAUSAL))
    with pytest.raises(error, match=sentence) as caught:
        read_foreign(spoil(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stated", [{"num_layers": None}, {"num_attention_heads": None}, {"num_attention_heads": 3}])
def test_a_prefix_has_layers_and_heads_that_divide_its_width(tmp_path: Path, stated: dict[str, int | None]) -> None:
    prefix = KeyValues(torch.ones(3, 2, 4, 8), torch.ones(3, 2, 4, 8))
    folder = written(tmp_path / "a", build_peft_files(prefix, CAUSAL))
    with pytest.raises(ArtifactError, match=r"found .* and .* for 16; save the adapter again with a current PEFT"):
        read_foreign(edited(folder, **stated))


def test_a_thousand_virtual_tokens_are_the_most_that_are_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", build_peft_files(torch.ones(1000, 2), CAUSAL))
    (tmp_path / "a.npy").write_bytes(npy(np.ones((1000, 2), np.float32)))
    for path in (folder, tmp_path / "a.npy"):
        assert torch.equal(torch.as_tensor(read_foreign(path).prompt), torch.ones(1000, 2))


def lying_npy() -> bytes:
    """A header that states terabytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 6)})
    return buffer.getvalue() + b"\0" * 48


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PK\3\4",
        lying_npy(),
        npy(np.array([{}], dtype=object)),
        npy(np.ones((2, 3), int)),
        npy(np.full((2, 3), np.inf)),
        npy(np.ones((1001, 2))),
    ],
)
def test_what_is_no_sound_array_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(body)
    with pytest.raises(ArtifactError):
        read_foreign(tmp_path / "a.npy")
