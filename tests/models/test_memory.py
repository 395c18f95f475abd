"""How much memory may still be taken, and how many tokens fill a pass."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ptpipeline.models import memory
from ptpipeline.models.memory import (
    CPU_TOKENS,
    MOST_TOKENS,
    choose_pass_tokens,
    choose_prompt_tokens,
    count_free_bytes,
    count_token_bytes,
    count_total_bytes,
    fit_pass_tokens,
)
from ptpipeline.models.offload import Rooms, measure_rooms
from tests.models.families import family

CPU = torch.device("cpu")
GIBIBYTE = 2**30


def container(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{3 * GIBIBYTE}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {GIBIBYTE}\n")
    return folder


def test_a_container_bounds_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", container(tmp_path, str(2 * GIBIBYTE + 4096)))
    assert count_free_bytes(CPU) == 4096  # of 2 GiB and 4 KiB, 3 GiB are in use, of which 1 GiB is cached files


@pytest.mark.parametrize("limit", ["max", None])
def test_without_a_container_the_machine_bounds_it(
    limit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", container(tmp_path, limit) if limit else tmp_path)
    assert count_free_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_limit_that_cannot_be_read_bounds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").mkdir()
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert count_total_bytes(CPU) == psutil.virtual_memory().total
    assert 0 < count_free_bytes(CPU) <= psutil.virtual_memory().total


def test_a_container_larger_than_the_machine_bounds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", container(tmp_path, str(2**60)))
    assert count_free_bytes(CPU) <= psutil.virtual_memory().total
    assert count_total_bytes(CPU) == psutil.virtual_memory().total


def test_a_container_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", container(tmp_path, str(GIBIBYTE)))
    assert (count_free_bytes(CPU), count_total_bytes(CPU)) == (0, GIBIBYTE)


@pytest.mark.parametrize("limit", ["max", None])
def test_without_a_container_a_device_has_the_machines_memory(
    limit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", container(tmp_path, limit) if limit else tmp_path)
    assert count_total_bytes(CPU) == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("room", "tokens"), [(0, CPU_TOKENS), (4096 * 100, 4096), (8191 * 100, 4096), (10**12, MOST_TOKENS)]
)
def test_the_largest_power_of_two_that_fits_fills_a_pass(room: int, tokens: int) -> None:
    assert fit_pass_tokens(room, 100) == tokens


@pytest.mark.parametrize(
    ("passes", "prompts"), [(CPU_TOKENS, CPU_TOKENS), (4096, 2048), (MOST_TOKENS, MOST_TOKENS // 2)]
)
def test_prompts_grow_with_the_passes_beyond_those_of_a_cpu(passes: int, prompts: int) -> None:
    assert choose_prompt_tokens(passes) == prompts


def test_a_token_keeps_twice_what_the_maps_put_out() -> None:
    """Llama of 3 layers, H=32, I=64, 4 heads and 2 key/value heads of 8, in float64."""
    assert count_token_bytes(family("llama").model) == 2 * 8 * 3 * ((4 + 2 + 2) * 8 + 32 + 64 + 64 + 32)


GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 8 GiB, of which 2 are free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * GIBIBYTE, 8 * GIBIBYTE))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=8 * GIBIBYTE))


@pytest.mark.usefixtures("gpu")
def test_a_gpus_memory_is_its_own() -> None:
    assert (count_free_bytes(GPU), count_total_bytes(GPU)) == (2 * GIBIBYTE, 8 * GIBIBYTE)
    assert measure_rooms(GPU) == Rooms(0.8 * 8 * GIBIBYTE, 0.8 * count_total_bytes(CPU))


@pytest.mark.usefixtures("gpu")
def test_passes_fill_half_of_what_the_weights_on_a_gpu_leave_of_all_its_memory() -> None:
    """Each token keeps 2 * 8192 outputs of 2 bytes; 8 GiB less 4 leave room for 2 GiB, not for what is free."""
    layer = SimpleNamespace(ndim=2, shape=(8192, 64))
    placed = [SimpleNamespace(nbytes=4 * GIBIBYTE, device=GPU), SimpleNamespace(nbytes=GIBIBYTE * 9, device=CPU)]
    model = SimpleNamespace(
        device=GPU,
        dtype=torch.float16,
        parameters=lambda: placed,
        base_model=SimpleNamespace(named_parameters=lambda: [("layer", layer)]),
    )
    assert choose_pass_tokens(model) == MOST_TOKENS == 2 * GIBIBYTE // (2 * 8192 * 2)
    placed[0].nbytes += 1
    assert choose_pass_tokens(model) == MOST_TOKENS // 2
