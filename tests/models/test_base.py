"""Fingerprints bind a prompt to its base model: weights, tokenizer, and the configuration that matters."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from ptpipeline.errors import BaseModelError, NotFound
from ptpipeline.models.base import prepare_base, prepare_folder
from ptpipeline.models.load import load_base
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.tensors import check_base, pack
from ptpipeline.records.prompts import BaseModelRef
from ptpipeline.settings import Settings
from tests.golden.inputs import MANIFEST
from tests.tiny import other_base, tiny_base, tiny_project

GOLDEN = Path(__file__).parents[1] / "golden/project"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "model")


def edited(folder: Path, name: str = "config.json", **fields: object) -> None:
    path = folder / name
    stated = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({field: value for field, value in (stated | fields).items() if value is not None}))


def followed(folder: Path) -> list[object]:
    """All that training and decoding take from a tokenizer and from the tokens that end a text."""
    base = load_base(prepare_folder("tiny", folder, folder), "float32")
    tokens = base.encode("good</s> film <x>", True)
    special = sorted(base.tokenizer.all_special_ids)
    return [
        tokens,
        base.encode("film", False),
        base.bos,
        sorted(base.end_tokens),
        special,
        len(base.tokenizer),
        base.tokenizer.decode(tokens, skip_special_tokens=True),
    ]


def test_same_files_hash_the_same_elsewhere(folder: Path, tmp_path: Path) -> None:
    other = tiny_base(tmp_path / "other")
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint == prepare_folder("b", other, tmp_path).ref.fingerprint


def test_one_changed_weight_is_another_model(folder: Path, tmp_path: Path) -> None:
    before = prepare_folder("a", folder, tmp_path).ref.fingerprint
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint != before


@pytest.mark.parametrize(
    "fields", [{"rms_norm_eps": 0.1}, {"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}]
)
def test_config_that_matters_is_covered(folder: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    before = prepare_folder("a", folder, tmp_path).ref.fingerprint
    edited(folder, **fields)
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint != before


@pytest.mark.parametrize(
    "fields", [{"transformers_version": "0.0"}, {"dtype": "float16"}, {"_name_or_path": "elsewhere"}]
)
def test_config_that_does_not_matter_is_not(folder: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    before = prepare_folder("a", folder, tmp_path).ref.fingerprint
    edited(folder, **fields)
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint == before


def test_changed_tokenizer_is_another_model(folder: Path, tmp_path: Path) -> None:
    before = prepare_folder("a", folder, tmp_path).ref
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    after = prepare_folder("a", folder, tmp_path).ref
    assert (after.fingerprint, after.tokenizer_fingerprint) != (before.fingerprint, before.tokenizer_fingerprint)


def test_one_changed_merge_of_the_tokenizer_is_another_model(folder: Path, tmp_path: Path) -> None:
    before, behaviour = prepare_folder("a", folder, tmp_path).ref.fingerprint, followed(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    pairs = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [pair for pair in pairs if not "".join(pair).endswith("film")]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert followed(folder) != behaviour
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint != before


def test_any_setting_of_the_tokenizer_counts_unless_it_is_known_to_be_harmless(folder: Path, tmp_path: Path) -> None:
    before = prepare_folder("a", folder, tmp_path).ref
    edited(folder, "tokenizer_config.json", do_lower_case=True)
    after = prepare_folder("a", folder, tmp_path)
    assert after.ref.tokenizer_fingerprint != before.tokenizer_fingerprint
    assert after.earlier.tokenizer_fingerprint == before.tokenizer_fingerprint


ADDED = {
    "257": {
        "content": "<x>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": False,
    }
}


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("generation_config.json", {"eos_token_id": [2, 5]}),
        ("generation_config.json", {"eos_token_id": 7}),
        ("generation_config.json", {"eos_token_id": [1]}),
        ("tokenizer_config.json", {"eos_token": "<s>"}),
        ("tokenizer_config.json", {"eos_token": "<s>", "pad_token": "</s>"}),  # the same special tokens in other roles
        ("tokenizer_config.json", {"bos_token": "<unk>"}),
        ("tokenizer_config.json", {"pad_token": "film"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<x>"]}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<x>"]}),
        ("tokenizer_config.json", {"image_token": "<x>"}),
        ("tokenizer_config.json", {"added_tokens_decoder": ADDED}),
        ("special_tokens_map.json", {"pad_token": {"content": "<x>"}}),
        ("added_tokens.json", {"<x>": 999}),
    ],
)
def test_what_changes_token_ids_or_ends_a_text_is_covered(
    folder: Path, tmp_path: Path, file: str, fields: dict[str, object]
) -> None:
    before, behaviour = prepare_folder("a", folder, tmp_path).ref.fingerprint, followed(folder)
    edited(folder, file, **fields)
    assert followed(folder) != behaviour
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint != before


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("generation_config.json", {"temperature": 0.5, "transformers_version": "0.0", "pad_token_id": 4}),
        ("config.json", {"eos_token_id": 9, "bos_token_id": 9}),  # generation_config.json states its own
        ("tokenizer_config.json", {"model_max_length": 100}),
        ("tokenizer_config.json", {"add_bos_token": True, "add_eos_token": True}),  # tokenizer.json alone says
        (
            "tokenizer_config.json",
            {"chat_template": "{{ messages }}", "padding_side": "left", "clean_up_tokenization_spaces": True},
        ),
        ("tokenizer_config.json", {"name_or_path": "elsewhere", "transformers_version": "0.0", "backend": None}),
        ("tokenizer_config.json", {"pad_token": "</s>"}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        (
            "tokenizer_config.json",
            {
                "bos_token": {
                    "__type": "AddedToken",
                    "content": "<s>",
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
            },
        ),
    ],
)
def test_what_neither_changes_token_ids_nor_ends_a_text_is_not(
    folder: Path, tmp_path: Path, file: str, fields: dict[str, object]
) -> None:
    before, behaviour = prepare_folder("a", folder, tmp_path).ref.fingerprint, followed(folder)
    edited(folder, file, **fields)
    assert followed(folder) == behaviour
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint == before


def test_special_tokens_by_role_count_by_what_they_are(folder: Path, tmp_path: Path) -> None:
    """As some savers write them: `{"image_token": "<x>"}`."""
    found = set()
    for token in ("<x>", "<y>", {"content": "<y>"}):
        edited(folder, "tokenizer_config.json", extra_special_tokens={"image_token": token})
        found.add(prepare_folder("a", folder, tmp_path).ref.tokenizer_fingerprint)
    assert len(found) == 2


def test_the_tokenizers_class_is_covered(folder: Path, tmp_path: Path) -> None:
    edited(folder, "tokenizer_config.json", add_prefix_space=True)  # which the generic class does not read
    before, behaviour = prepare_folder("a", folder, tmp_path).ref.fingerprint, followed(folder)
    edited(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    assert followed(folder) != behaviour
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint != before


def test_which_token_is_bos_is_covered(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    before, behaviour = prepare_folder("a", folder, tmp_path).ref.fingerprint, followed(folder)
    edited(folder, "tokenizer_config.json", bos_token="<unk>", pad_token="<s>")
    assert followed(folder) != behaviour
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint != before


def test_without_generation_config_the_end_of_text_is_that_of_the_config(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").unlink()
    before, behaviour = prepare_folder("a", folder, tmp_path).ref.fingerprint, followed(folder)
    edited(folder, eos_token_id=9)
    assert followed(folder) != behaviour
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint != before


def test_a_generation_config_that_states_no_end_stands_before_the_config(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text("{}")
    before, behaviour = prepare_folder("a", folder, tmp_path).ref.fingerprint, followed(folder)
    edited(folder, eos_token_id=9)
    assert followed(folder) == behaviour
    assert prepare_folder("a", folder, tmp_path).ref.fingerprint == before


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json"])
def test_a_damaged_file_beside_the_weights_is_named(folder: Path, tmp_path: Path, file: str) -> None:
    (folder / file).write_text("{")
    with pytest.raises(BaseModelError, match="is damaged"):
        prepare_folder("a", folder, tmp_path).ref


def test_pinned_fingerprint_refuses_another_model(tmp_path: Path) -> None:
    tasks = tiny_project(tmp_path)
    (tasks / "base_models.yaml").write_text(f'tiny: {{path: "{tmp_path / "base"}", fingerprint: "{"0" * 64}"}}\n')
    with pytest.raises(BaseModelError, match=r"base_models.yaml pins 000000000000"):
        prepare_base("tiny", Settings(home=tmp_path / "home", tasks=tasks))


def test_a_path_may_begin_at_a_persons_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_base(tmp_path / "model")
    (tmp_path / "base_models.yaml").write_text("tiny: {path: ~/model}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare_base("tiny", Settings(home=tmp_path / "home", tasks=tmp_path)).folder == tmp_path / "model"


def test_unknown_base_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there are tiny"):
        prepare_base("huge", Settings(home=tmp_path / "home", tasks=tiny_project(tmp_path)))


def test_weights_in_memory_are_told_apart(tmp_path: Path) -> None:
    base = load_base(prepare_base("tiny", Settings(home=tmp_path / "home", tasks=tiny_project(tmp_path))), "float32")
    before = base.digest_weights()
    assert base.digest_weights() == before
    base.model.model.norm.weight.data[0] += 1e-3
    assert base.digest_weights() != before


# ---------------------------------------------------------------- the fingerprint as it was before


def test_the_earlier_fingerprint_is_the_one_that_stored_prompts_name(tmp_path: Path) -> None:
    manifests = sorted((GOLDEN / "home/store/prompts").glob("*/*/manifest.json"))
    named = {json.loads(path.read_text())["base_model"]["fingerprint"] for path in manifests}
    prepared = prepare_folder("small", GOLDEN / "base", tmp_path)
    assert {prepared.earlier.fingerprint} == named
    assert prepared.ref.fingerprint not in named


def test_a_prompt_that_names_the_earlier_fingerprint_loads(tmp_path: Path) -> None:
    prepared = prepare_folder("tiny", tiny_base(tmp_path / "model"), tmp_path)
    check_base(named(prepared.earlier), *prepared.known)
    check_base(named(prepared.ref), *prepared.known)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"fingerprint": "0" * 64}, "trained on base model tiny 000000000000"),
        ({"tokenizer_fingerprint": "0" * 64}, "trained on tokenizer tiny 000000000000"),
    ],
)
def test_a_prompt_of_another_base_is_refused_by_both(tmp_path: Path, fields: dict[str, str], what: str) -> None:
    prepared = prepare_folder("tiny", tiny_base(tmp_path / "model"), tmp_path)
    with pytest.raises(BaseModelError, match=what):
        check_base(named(prepared.earlier.model_copy(update=fields)), *prepared.known)


def test_a_base_whose_weights_changed_has_another_earlier_fingerprint(tmp_path: Path) -> None:
    before = prepare_folder("tiny", tiny_base(tmp_path / "model"), tmp_path)
    after = prepare_folder("tiny", other_base(tmp_path / "other"), tmp_path)
    with pytest.raises(BaseModelError, match="trained on base model"):
        check_base(named(before.earlier), *after.known)


def named(base: BaseModelRef) -> Artifact:
    """A prompt whose manifest names that base."""
    return pack(torch.zeros(2, base.hidden_size), "float32", MANIFEST | {"base_model": base, "method": "prompt"})


def test_a_pin_of_the_earlier_fingerprint_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    tasks = tiny_project(tmp_path)
    prepared = prepare_folder("tiny", tmp_path / "base", tmp_path)
    pin = f'tiny: {{path: "{tmp_path / "base"}", fingerprint: "{prepared.earlier.fingerprint}"}}\n'
    (tasks / "base_models.yaml").write_text(pin)
    with pytest.raises(BaseModelError, match=f"write `fingerprint: {prepared.ref.fingerprint}`"):
        prepare_base("tiny", Settings(home=tmp_path / "home", tasks=tasks))
