"""`auto` takes the type in which this machine was measured to multiply faster; each test writes the rates it needs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ptpipeline.errors import BaseModelError
from ptpipeline.models import compute_type
from ptpipeline.models.base import PreparedBase, prepare_folder
from ptpipeline.models.compute_type import (
    Product,
    Speed,
    _can_multiply,
    _make_operands,
    choose_dtype,
    describe_product,
    locate_speed,
    measure_speed,
)
from ptpipeline.settings import Settings
from tests.tiny import tiny_base


@pytest.fixture
def base(tmp_path: Path) -> PreparedBase:
    return prepare_folder("tiny", tiny_base(tmp_path / "base"), tmp_path / "home")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def keep(settings: Settings, product: Product, float32: float, bfloat16: float, at: Product | None = None) -> Path:
    """Write what a measurement of the product would have kept, if it says so at the place of another product."""
    path = locate_speed(settings.home, at or product)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Speed(product=product, float32=float32, bfloat16=bfloat16).model_dump_json())
    return path


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [(303, 159, "float32"), (196, 442, "bfloat16"), (200, 219, "float32"), (200, 221, "bfloat16"), (200, 0, "float32")],
)
def test_bfloat16_is_taken_only_if_it_is_clearly_faster(
    base: PreparedBase, settings: Settings, float32: float, bfloat16: float, expected: str
) -> None:
    keep(settings, describe_product(base), float32, bfloat16)
    choice = choose_dtype(base, settings)
    assert choice.dtype == expected
    assert f"{float32} GFLOP/s in float32 and {bfloat16} in bfloat16" in choice.reason


def test_a_setting_wins_and_nothing_is_measured(base: PreparedBase, settings: Settings) -> None:
    keep(settings, describe_product(base), 1, 100)
    assert choose_dtype(base, settings.model_copy(update={"dtype": "float32"})).dtype == "float32"
    other = settings.model_copy(update={"dtype": "bfloat16", "home": settings.home / "other"})
    assert choose_dtype(base, other).dtype == "bfloat16"
    assert not (other.home / "compute").exists()


def test_the_product_is_the_largest_matrix_of_a_layer(base: PreparedBase) -> None:
    config = base.files.read_json("config.json") or {}
    product = describe_product(base)
    assert {product.inputs, product.outputs} == {config["hidden_size"], config["intermediate_size"]}
    assert config["vocab_size"] > product.outputs


@pytest.mark.parametrize(
    ("shapes", "largest"),
    [
        ({"layers.0.a": (30, 4), "layers.1.b": (10, 20), "layers.1.c": (9, 9, 9), "embed": (99, 9)}, (10, 20)),
        ({"embed": (99, 9), "head": (9, 99, 9)}, (99, 9)),
        ({"layers.0.a": (7, 2**12)}, (7, 2**12)),
    ],
)
def test_of_layers_or_of_the_rest_the_largest_matrix_counts(
    shapes: dict[str, tuple[int, ...]], largest: tuple[int, int], base: PreparedBase, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "own.safetensors")
    own = base._replace(files=base.files._replace(weights=[tmp_path / "own.safetensors"]))
    product = describe_product(own)
    assert (product.outputs, product.inputs) == largest


def test_no_more_weights_are_multiplied_than_tell_the_rate(base: PreparedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = describe_product(base)
    for most, outputs in ((2 * whole.inputs + 1, 2), (whole.inputs - 1, 1)):
        monkeypatch.setattr(compute_type, "_MAX_WEIGHTS", most)
        assert describe_product(base) == whole.model_copy(update={"outputs": outputs})


def test_a_base_without_a_matrix_is_refused(base: PreparedBase, tmp_path: Path) -> None:
    save_file({"layers.0.norm": torch.zeros(4)}, tmp_path / "own.safetensors")
    with pytest.raises(BaseModelError, match="holds no matrix; is it a language model"):
        describe_product(base._replace(files=base.files._replace(weights=[tmp_path / "own.safetensors"])))


LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_the_instructions_is_another_machine(
    base: PreparedBase, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in LIMITS:
        monkeypatch.delenv(other, raising=False)
    free = describe_product(base)
    monkeypatch.setenv(name, "AVX2")
    assert set(describe_product(base).instructions) == {*free.instructions, "limit AVX2"}


def test_the_shortest_time_of_each_type_counts(base: PreparedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    product = describe_product(base)
    rounds: list[dict[torch.dtype, float]] = [
        {torch.float32: 3, torch.bfloat16: 4}, {torch.float32: 1, torch.bfloat16: 2},
        {torch.float32: 2, torch.bfloat16: 5},
    ]  # fmt: skip
    known = [dtype for dtype in rounds[0] if _can_multiply(*_make_operands(product, dtype))]
    taken = [taking(*(seconds[dtype] for dtype in known)) for seconds in rounds]
    clock = FixedClock([0.0, *taken[0], 0.1, *taken[1], 0.2, *taken[2], 9.0])  # the time between is looked at, too
    monkeypatch.setattr(compute_type, "time", clock)
    speed, work = measure_speed(product), 2 * product.tokens * product.inputs * product.outputs / 1e9
    assert speed.float32 == pytest.approx(work / 1)
    assert speed.bfloat16 == pytest.approx(work / 2 if torch.bfloat16 in known else 0)
    assert clock.times == []


class FixedClock:
    """A clock that tells these times, one after another."""

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def perf_counter(self) -> float:
        return self.times.pop(0)


def taking(*seconds: float) -> list[float]:
    """Beginnings and ends that are so far apart."""
    return [at for one in seconds for at in (50.0, 50.0 + one)]


def test_it_is_measured_once_within_a_second(base: PreparedBase, settings: Settings) -> None:
    started = time.perf_counter()
    first = choose_dtype(base, settings)
    assert time.perf_counter() - started < 10  # under a second where nothing else runs
    path = locate_speed(settings.home, describe_product(base))
    kept = path.read_bytes()
    assert choose_dtype(base, settings) == first
    assert path.read_bytes() == kept
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("body", [b"", b"{", b'{"float32": 1}', b"\xff" * 100, b"[" * 1000, bytes(100_000)])
def test_a_damaged_record_is_measured_anew(
    base: PreparedBase, settings: Settings, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep(settings, describe_product(base), 1, 1)
    path.write_bytes(body)
    choose_dtype(base, settings)
    assert "measured again" in caplog.text
    assert Speed.model_validate_json(path.read_bytes()).float32 > 1


def test_a_record_of_another_product_is_measured_anew(base: PreparedBase, settings: Settings) -> None:
    product = describe_product(base)
    path = keep(settings, product.model_copy(update={"processor": "another"}), 1, 1, at=product)
    choose_dtype(base, settings)
    assert Speed.model_validate_json(path.read_bytes()).product == product


@pytest.mark.parametrize(
    "change", [{"processor": "another"}, {"instructions": []}, {"threads": 99}, {"torch": "0"}, {"inputs": 1}]
)
def test_another_machine_or_library_has_a_record_of_its_own(base: PreparedBase, change: dict[str, object]) -> None:
    product, home = describe_product(base), Path("home")
    assert locate_speed(home, product.model_copy(update=change)) != locate_speed(home, product)


def test_a_home_that_cannot_be_written_is_no_obstacle(
    base: PreparedBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    choose_dtype(base, Settings(home=tmp_path / "file"))
    assert "each process measures" in caplog.text


def test_measuring_moves_no_random_numbers(base: PreparedBase) -> None:
    before = torch.get_rng_state()
    measure_speed(describe_product(base))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_processor_without_bfloat16_computes_in_float32(base: PreparedBase, tmp_path: Path) -> None:
    """oneDNN, limited to older instructions, refuses bfloat16 as it does on an older processor."""
    script = (
        "import sys; from pathlib import Path; from ptpipeline.settings import Settings;"
        "from ptpipeline.models.base import prepare_folder; from ptpipeline.models.compute_type import choose_dtype;"
        "home = Path(sys.argv[2]); base = prepare_folder('tiny', Path(sys.argv[1]), home);"
        "print(choose_dtype(base, Settings(home=home)).dtype)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(base.folder), str(tmp_path / "home")],
        env={"PATH": "", "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["float32"]
