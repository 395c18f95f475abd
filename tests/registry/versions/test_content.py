"""Objects that their keys name: what was altered is never taken for them, and is kept when they are written again."""

from pathlib import Path

import pytest

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.storage import FolderStore, ObjectStore
from ptpipeline.storage.keys import plot_key, quarantine_key
from ptpipeline.storage.signed import SignedStore
from registry.versions.content import is_sound, read_content, set_aside, write_content
from tests.registry.signed import WORKER, trust

BODY, ALTERED = b"an image", b"another image"
KEY = plot_key("mood", "d" * 64, "curve", BODY)


@pytest.fixture(params=["plain", "signed"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A folder, and one that asks for signatures."""
    folder = FolderStore(tmp_path / "store")
    return folder if request.param == "plain" else SignedStore(folder, trust(WORKER), WORKER)


@pytest.fixture
def altered(opened: ObjectStore, tmp_path: Path) -> ObjectStore:
    """The same, where somebody without a key put other bytes."""
    FolderStore(tmp_path / "store").create(KEY, ALTERED)
    return opened


def test_what_is_there_is_sound_if_it_is_what_its_key_names(opened: ObjectStore) -> None:
    assert not is_sound(opened, KEY)
    write_content(opened, KEY, BODY)
    write_content(opened, KEY, BODY)
    assert (is_sound(opened, KEY), read_content(opened, KEY)) == (True, BODY)


def test_what_was_altered_is_neither_sound_nor_read(altered: ObjectStore) -> None:
    assert not is_sound(altered, KEY)
    with pytest.raises(ArtifactError):
        read_content(altered, KEY)


def test_what_was_altered_is_kept_and_replaced(altered: ObjectStore) -> None:
    write_content(altered, KEY, BODY)
    assert read_content(altered, KEY) == BODY
    assert altered.read(quarantine_key(KEY, ALTERED)).body == ALTERED


def test_what_is_set_aside_is_kept(altered: ObjectStore) -> None:
    kept = quarantine_key(KEY, ALTERED)
    assert set_aside(altered, KEY) == f"{KEY} was altered: kept as {kept}"
    assert altered.read(kept).body == ALTERED
    with pytest.raises(NotFound):
        altered.read(KEY)
    assert set_aside(altered, KEY) == f"{KEY} is gone"
