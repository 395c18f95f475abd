"""Base models from a hub."""

from pathlib import Path

import pytest

from ptpipeline.errors import BaseModelError, SettingsError
from ptpipeline.models.base import prepare_base, prepare_folder
from ptpipeline.models.load import load_base
from ptpipeline.settings import Settings
from tests.hub_server import COMMIT, Hub
from tests.tiny import tiny_base


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/base_models.yaml").write_text(f"tiny: {{hub: lab/tiny, revision: {COMMIT}}}\n")
    return Settings(home=tmp_path / "home", tasks=tmp_path / "tasks")


def model(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_base(folder).iterdir()}


def test_a_base_of_the_hub_is_the_one_that_lies_there(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    hub.put("models/lab/tiny", **model(tmp_path / "model"))
    base = prepare_base("tiny", settings)
    assert base.ref.fingerprint == prepare_folder("tiny", tmp_path / "model", tmp_path).ref.fingerprint
    assert load_base(base, "float32").encode("a good film", False)


def test_only_what_is_loaded_is_fetched(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    foreign = {"modeling_tiny.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"x"}
    hub.put("models/lab/tiny", **model(tmp_path / "model"), **foreign)
    base = prepare_base("tiny", settings)
    fetched = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    assert fetched == {path.name for path in (tmp_path / "model").iterdir()}
    assert not list(base.folder.glob("*.py"))


def test_a_base_is_fetched_once(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    hub.put("models/lab/tiny", **model(tmp_path / "model"))
    prepare_base("tiny", settings)
    hub.asked.clear()
    prepare_base("tiny", settings)
    assert hub.asked == []


def test_a_base_that_does_not_fit_on_the_disk_is_not_fetched(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    hub.put("models/lab/tiny", **model(tmp_path / "model"))
    hub.repositories["models/lab/tiny"].sizes["model.safetensors"] = 10**16
    with pytest.raises(BaseModelError, match=r"it has 10000000\.0 GB, and .* GB left, of which 1 stay free; free some"):
        prepare_base("tiny", settings)
    assert [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line] == []


def test_a_base_that_is_not_there_is_no_matter_of_time(hub: Hub, settings: Settings) -> None:
    with pytest.raises(BaseModelError, match=r"base model tiny: hub:lab/tiny@.*: the hub has no such repository"):
        prepare_base("tiny", settings)
    hub.put("models/lab/tiny", gated=True, **{"config.json": b"{}"})
    with pytest.raises(SettingsError, match="it is gated; accept its terms on the hub, and set HF_TOKEN"):
        prepare_base("tiny", settings)
