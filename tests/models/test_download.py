"""Base models from a hub."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ptpipeline.errors import BaseModelError, SettingsError
from ptpipeline.models.base import _check_room, _locate_folder, prepare_base, prepare_folder
from ptpipeline.models.load import load_base
from ptpipeline.records.base import digest_of
from ptpipeline.settings import Settings
from ptpipeline.task.folder import BaseModelSource
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


def test_all_that_was_fetched_is_synced(
    hub: Hub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that is there counts as complete, after a power loss too."""
    hub.put("models/lab/tiny", **model(tmp_path / "model"))
    synced, fsync = set[str](), os.fsync
    note = lambda file: (synced.add(Path(os.readlink(f"/proc/self/fd/{file}")).name), fsync(file))  # noqa: E731
    monkeypatch.setattr(os, "fsync", note)
    base = prepare_base("tiny", settings)
    assert {*(path.name for path in (tmp_path / "model").iterdir()), base.folder.parent.name} <= synced


def test_it_is_fetched_at_the_commit_that_is_pinned(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    hub.put("models/lab/tiny", **model(tmp_path / "model"))
    prepare_base("tiny", settings)
    assert [line for line in hub.asked if "/main" in line] == []


def test_a_fingerprint_that_is_pinned_later_fetches_nothing(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    hub.put("models/lab/tiny", **model(tmp_path / "model"))
    base, declared = prepare_base("tiny", settings), f"hub: lab/tiny, revision: {COMMIT}"
    (settings.tasks / "base_models.yaml").write_text(f"tiny: {{{declared}, fingerprint: {base.ref.fingerprint}}}\n")
    hub.asked.clear()
    assert (prepare_base("tiny", settings).ref, hub.asked) == (base.ref, [])


def test_what_a_broken_fetch_left_is_no_part_of_the_base(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    hub.put("models/lab/tiny", **model(tmp_path / "model"))
    folder = prepare_base("tiny", settings).folder
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    (folder.with_name(f"{folder.name}.partial") / "left.txt").write_text("of another fetch")
    assert prepare_base("tiny", settings).folder == folder
    assert not (folder / "left.txt").exists()


def test_what_is_not_fetched_needs_no_room(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    hub.put("models/lab/tiny", **model(tmp_path / "model"), **{"pytorch_model.bin": b"pickle"})
    hub.repositories["models/lab/tiny"].sizes["pytorch_model.bin"] = 10**16
    assert prepare_base("tiny", settings).ref.hidden_size == 64


def test_a_gigabyte_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**9 + 5))
    _check_room("base model tiny", 5, tmp_path)
    with pytest.raises(BaseModelError, match="of which 1 stay free"):
        _check_room("base model tiny", 6, tmp_path)


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


def test_two_files_of_one_package_are_two_bases(tmp_path: Path) -> None:
    for member in ("small.gguf", "large.gguf"):
        key = digest_of({"sha256": "a" * 64, "member": member})[:8]
        converted = tmp_path / "models" / f"base-{key}"
        converted.mkdir(parents=True)
        (converted / "config.json").write_text("{}")
        source = BaseModelSource(package="models==1.0", member=member, sha256="a" * 64)
        assert _locate_folder("base", source, tmp_path) == converted
