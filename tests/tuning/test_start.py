"""What decides whether a task trains, part by part, and what it starts from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ptpipeline.errors import BaseModelError, DataError, NotFound, TaskFileError
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import KeyValues, SoftPrompt
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.prompts.tensors import pack, pack_ensemble
from ptpipeline.records.data import Snapshot, SplitInfo
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.versions import Pointer, Promotion, VersionName
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import pointer_key, version_key
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Task
from ptpipeline.tuning.key import compute_training_key, digest_start
from ptpipeline.tuning.start import load_start
from tests.models.families import family
from tests.tuning.jobs import declared


@pytest.fixture(scope="module")
def base() -> CausalBase:
    return family("llama", torch.float32)


def quiet(line: str) -> None:
    """Nobody listens."""


# ---------------------------------------------------------------- the training key


def a_split(digest: str) -> SplitInfo:
    return SplitInfo(rows=4, labels={"no": 2, "yes": 2}, digest=digest * 64)


SNAPSHOT = Snapshot(
    task="mood",
    digest="1" * 64,
    source="rows.csv",
    source_key="key",
    train=a_split("a"),
    dev=a_split("b"),
    test=a_split("c"),
    checks=[],
)


def key(task: Task | None = None, base: str = "f" * 64, start: str | None = None, **splits: SplitInfo) -> str:
    return compute_training_key(task or declared("mood"), SNAPSHOT.model_copy(update=splits), base, start)


def other_metric() -> Task:
    task = declared("mood")
    return task.model_copy(update={"gate": task.gate.model_copy(update={"metric": "macro_f1"})})


def test_each_part_of_a_training_changes_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        key(),
        key(train=a_split("d")),
        key(dev=a_split("d")),
        key(declared("topic")),
        key(other_metric()),
        key(declared("mood", seed=1)),
        key(base="e" * 64),
        key(start="9" * 64),
        key(start="8" * 64),
    ]
    monkeypatch.setattr("ptpipeline.tuning.key.ENGINE_VERSION", 999)
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_dev_rows_count_only_if_they_leave_rows_out() -> None:
    """SNAPSHOT has 4: a recipe that evaluates them all has the key that it had before there was a limit."""
    assert Tune().dev_rows == 200
    many = a_split("b").model_copy(update={"rows": 201})
    assert key(dev=many) != key()
    assert key(dev=many.model_copy(update={"rows": 200})) == key()
    assert len({key(declared("mood", dev_rows=count), dev=many) for count in (3, 200, 201, 202)}) == 4


def test_test_rows_are_no_part_of_a_training() -> None:
    assert key(test=a_split("d")) == key()


# ---------------------------------------------------------------- the start


def stored(store: FolderStore, base: CausalBase, prompt: SoftPrompt, **fields: Any) -> Artifact:
    """A prompt of the task `mood`, stored as version 1 and named by production."""
    given = {
        "task": "mood",
        "method": "prefix" if isinstance(prompt, KeyValues) else "prompt",
        "placement": "before_bos",
        "base_model": base.ref,
        "template": "{text}",
        "labels": {"no": "no", "yes": "yes"},
        "max_input_tokens": 50,
        "snapshot": "c" * 64,
        "recipe": "d" * 64,
        "training_key": "e" * 64,
        "seed": 0,
        "engine_version": 1,
    }
    made = pack(prompt, "float32", given | fields)
    name_version(store, write_artifact(store, made))
    return made


def name_version(store: FolderStore, digest: str) -> None:
    """Let version 1 and production of the task `mood` name that prompt."""
    name = VersionName(task="mood", number=1, digest=digest)
    store.create(version_key("mood", 1), name.model_dump_json().encode())
    head = Promotion(
        task="mood",
        alias="production",
        seq=1,
        version=1,
        digest=digest,
        previous=None,
        actor="me",
        reason="why",
        verdict=None,
        at="2026-01-01T00:00:00+00:00",
    )
    store.create(pointer_key("mood", "production"), Pointer(promotion=head, nonce="n" * 16).model_dump_json().encode())


def name_ensemble(store: FolderStore, base: CausalBase) -> None:
    """Let version 1 and production of the task `mood` name an ensemble."""
    one = stored(FolderStore(store.root / "parts"), base, embeddings())
    left_out = {"num_virtual_tokens", "tensors", "tensor_sha256", "members"}
    fields = {name: getattr(one.manifest, name) for name in PromptManifest.model_fields if name not in left_out}
    write_artifact(store, one)
    made = pack_ensemble([one, one], "average", fields | {"method": "ensemble"})
    write_artifact(store, made)
    name_version(store, made.digest)


def embeddings(tokens: int = 3) -> torch.Tensor:
    return torch.linspace(-1, 1, tokens * 32).reshape(tokens, 32)


def key_values(tokens: int = 3) -> KeyValues:
    return KeyValues(*torch.linspace(-1, 1, 2 * 3 * 2 * tokens * 8).reshape(2, 3, 2, tokens, 8))


def warm(**tune: object) -> Task:
    return declared("mood", init="champion", **tune)


def test_a_champion_of_the_same_kind_and_size_is_the_start(base: CausalBase, tmp_path: Path) -> None:
    champion = stored(FolderStore(tmp_path), base, embeddings())
    start = load_start(base, warm(), FolderStore(tmp_path), quiet)
    assert isinstance(start.prompt, torch.Tensor)
    torch.testing.assert_close(start.prompt, embeddings())
    assert (start.parents, start.key) == ([champion.digest], None)


def test_a_prefix_is_the_start_of_a_prefix(base: CausalBase, tmp_path: Path) -> None:
    stored(FolderStore(tmp_path), base, key_values())
    start = load_start(base, warm(method="prefix", encoder_width=8), FolderStore(tmp_path), quiet)
    assert isinstance(start.prompt, KeyValues)


def test_embeddings_may_be_the_start_of_a_prefix(base: CausalBase, tmp_path: Path) -> None:
    champion = stored(FolderStore(tmp_path), base, embeddings())
    start = load_start(base, warm(method="prefix", encoder_width=8), FolderStore(tmp_path), quiet)
    assert (isinstance(start.prompt, torch.Tensor), start.parents) == (True, [champion.digest])


COLD: dict[str, Callable[[], SoftPrompt]] = {
    "a prefix for a recipe of embeddings": key_values,
    "one that has more tokens": lambda: embeddings(4),
    "one that has fewer tokens": lambda: embeddings(2),
    "one that was trained on another base": embeddings,
}


@pytest.mark.parametrize("case", COLD)
def test_a_champion_that_does_not_fit_lets_the_training_start_cold(base: CausalBase, tmp_path: Path, case: str) -> None:
    other = base.ref.model_copy(update={"fingerprint": "f" * 64})
    stored(FolderStore(tmp_path), base, COLD[case](), base_model=other if "another base" in case else base.ref)
    lines: list[str] = []
    start = load_start(base, warm(), FolderStore(tmp_path), lines.append)
    assert (start.prompt, start.key, start.parents) == (None, None, [])
    assert lines[0].startswith("mood: starts cold:")


def test_without_a_champion_the_training_starts_cold(base: CausalBase, tmp_path: Path) -> None:
    lines: list[str] = []
    assert load_start(base, warm(), FolderStore(tmp_path), lines.append).parents == []
    assert lines[0].startswith("mood: starts cold:")


def test_without_a_named_start_nothing_is_read(base: CausalBase, tmp_path: Path) -> None:
    stored(FolderStore(tmp_path), base, embeddings())
    assert load_start(base, declared("mood"), FolderStore(tmp_path), quiet) == (None, None, [])


def test_a_named_version_is_the_start_and_part_of_the_key(base: CausalBase, tmp_path: Path) -> None:
    made, task = stored(FolderStore(tmp_path), base, embeddings()), declared("topic", init={"version": "mood@1"})
    start = load_start(base, task, FolderStore(tmp_path), quiet)
    assert (start.key, start.parents) == (made.digest, [made.digest])
    assert digest_start(task, FolderStore(tmp_path)) == made.digest


def test_a_named_version_of_another_base_is_refused(base: CausalBase, tmp_path: Path) -> None:
    other = base.ref.model_copy(update={"fingerprint": "f" * 64})
    stored(FolderStore(tmp_path), base, embeddings(), base_model=other)
    with pytest.raises(BaseModelError):
        load_start(base, declared("topic", init={"version": "mood@1"}), FolderStore(tmp_path), quiet)


def test_a_named_version_that_is_not_there_is_refused(base: CausalBase, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_start(base, declared("topic", init={"version": "mood@1"}), FolderStore(tmp_path), quiet)


def test_a_task_may_start_from_its_own_number_and_not_from_its_own_alias(base: CausalBase, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    made = stored(store, base, embeddings())
    assert digest_start(declared("mood", init={"version": "mood@1"}), store) == made.digest
    assert digest_start(declared("topic", init={"version": "mood@production"}), store) == made.digest
    with pytest.raises(TaskFileError, match="write `init: champion`"):
        digest_start(declared("mood", init={"version": "mood@production"}), store)


def test_the_bytes_of_a_file_are_part_of_the_key(tmp_path: Path) -> None:
    file = tmp_path / "start.npy"
    task, digests = declared("mood", init={"file": str(file)}), []
    for body in (b"one", b"two"):
        file.write_bytes(body)
        digests.append(digest_start(task, FolderStore(tmp_path)))
    assert None not in digests
    assert digests[0] != digests[1]
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        digest_start(task, FolderStore(tmp_path))


def test_a_champion_is_no_part_of_the_key(base: CausalBase, tmp_path: Path) -> None:
    stored(FolderStore(tmp_path), base, embeddings())
    assert digest_start(warm(), FolderStore(tmp_path)) is None


def test_an_ensemble_has_no_prompt_to_start_from(base: CausalBase, tmp_path: Path) -> None:
    store, lines = FolderStore(tmp_path), list[str]()
    name_ensemble(store, base)
    with pytest.raises(DataError, match="is an ensemble; name a single prompt"):
        load_start(base, declared("topic", init={"version": "mood@1"}), store, quiet)
    assert load_start(base, warm(), store, lines.append) == (None, None, [])
    assert lines == ["mood: starts cold: the champion is an ensemble of several prompts"]
