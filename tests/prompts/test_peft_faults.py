"""The faults of PEFT 0.21.2 that were reproduced: PEFT shows each of them here, and ours does not have it."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from ptpipeline.errors import BaseModelError
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, SoftPrompt, list_tensors
from ptpipeline.models.load import load_base
from ptpipeline.prompts.initialise import make_initial_prompt
from ptpipeline.prompts.parameterise import parameterise
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import pack, unpack
from ptpipeline.settings import Settings
from ptpipeline.task.recipe import TextInit, Tune
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family, seq2seq_family
from tests.prompts.adapters import saved_by_peft
from tests.prompts.test_artifact import artifact
from tests.tiny import tiny_project
from tests.tuning.jobs import job

LABELS = {"negative": " negative", "positive": " positive"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FrozenBase:
    folder: Path = tmp_path_factory.mktemp("base")
    return load_base(prepare_base("tiny", Settings(home=folder / "home", tasks=tiny_project(folder))), "float32")


def peft_prompt(base: FrozenBase, **config: object) -> Tensor:
    """The first prompt that PEFT makes over this base."""
    torch.manual_seed(0)
    model = peft.get_peft_model(
        copy.deepcopy(base.model), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8, **config)
    )
    return model.get_prompt_embedding_to_save("default")


def table_norms(base: FrozenBase) -> Tensor:
    return base.model.get_input_embeddings().weight.norm(dim=1)


# ---------------------------------------------------------------- first values


def test_peft_starts_far_outside_of_the_table(tiny: FrozenBase) -> None:
    assert peft_prompt(tiny).norm(dim=1).min() > 2 * table_norms(tiny).max()


@pytest.mark.parametrize("init", ["uniform", "sampled_vocab", "class_labels", TextInit(text="good film")])
def test_every_first_prompt_is_of_the_tables_size(tiny: FrozenBase, init: object) -> None:
    norms = make_initial_prompt(tiny, Tune(init=init), LABELS).norm(dim=1)  # type: ignore[arg-type, union-attr]
    assert norms.max() <= table_norms(tiny).max()
    assert norms.min() >= 0.5 * table_norms(tiny).min()


def test_xavier_is_bounded_by_its_formula(tiny: FrozenBase) -> None:
    prompt = make_initial_prompt(tiny, Tune(init="xavier"), LABELS)
    assert isinstance(prompt, Tensor)
    assert prompt.abs().max() <= (6 / (16 + 64)) ** 0.5


def beginning_with_bos(base: FrozenBase, folder: Path) -> Path:
    """The base's tokenizer as most are: with BOS before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(folder)
    return folder


def test_text_starts_without_special_tokens(tiny: FrozenBase, tmp_path: Path) -> None:
    from dataclasses import replace

    folder = beginning_with_bos(tiny, tmp_path)
    base = replace(tiny, tokenizer=AutoTokenizer.from_pretrained(folder))
    bos = base.embed(torch.tensor([1])).detach()
    theirs = peft_prompt(
        tiny, prompt_tuning_init="TEXT", prompt_tuning_init_text="good film", tokenizer_name_or_path=str(folder)
    )
    assert torch.equal(theirs[:1], bos)
    ours = make_initial_prompt(base, Tune(num_virtual_tokens=8, init=TextInit(text="good film")), LABELS)
    assert isinstance(ours, Tensor)
    assert not (ours == bos).all(1).any()


def test_peft_erases_a_text_init_in_multitask_tuning(tiny: FrozenBase) -> None:
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=8,
        num_tasks=1,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="good film",
        tokenizer_name_or_path=tiny.tokenizer.name_or_path,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(tiny.model), config)
    text = model.prompt_encoder["default"].embedding.weight
    assert model.get_prompt(1, task_ids=torch.tensor([0]))[0].norm() < 0.1 * text.norm()


@pytest.mark.parametrize(
    "tune",
    [
        Tune(),
        Tune(method="residual"),
        Tune(method="p_tuning"),
        Tune(method="p_tuning", encoder="mlp"),
        Tune(method="prefix"),
    ],
)
def test_no_method_erases_its_first_prompt(tiny: FrozenBase, tune: Tune) -> None:
    first = make_initial_prompt(tiny, tune.model_copy(update={"init": TextInit(text="good film")}), LABELS)
    for now, given in zip(list_tensors(parameterise(tune, first).build_prompt()), list_tensors(first), strict=True):
        torch.testing.assert_close(now, given, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- batches


def prompts(base: FrozenBase) -> list[SoftPrompt]:
    return [base.embed(torch.tensor(ids)).detach() for ids in ([7, 30, 61], [12, 3])]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_other_rows_of_a_batch_change_no_logits(name: str) -> None:
    base = family(name)
    row, longer = Input([5, 17, 40], (), 0), Input([9] * 8, (), 0)
    cache = base.compute_prefix(prompts(base)[:1])
    alone, together = (
        base.compute_logits(base.compute_states(cache, [row])),
        base.compute_logits(base.compute_states(cache, [row, longer])),
    )
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)


def test_pads_of_a_batch_change_pefts_logits() -> None:
    base = family("gpt2")
    model = peft.get_peft_model(
        copy.deepcopy(base.model), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    text, pads = [5, 17, 40], [0] * 5
    with torch.inference_mode():
        alone = model(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, 3)).logits[0, -1]
        padded = model(input_ids=torch.tensor([pads + text]), attention_mask=torch.tensor([[0] * 5 + [1] * 3])).logits[
            0, -1
        ]
    assert (padded - alone).abs().max() > 0.01


def test_each_row_of_a_batch_has_its_own_prompt() -> None:
    base = family("gpt2")
    first, second = prompts(base)
    rows = [Input([5, 17, 40], (), 0), Input([5, 17, 40], (), 1)]
    together = base.compute_logits(base.compute_states(base.compute_prefix([first, second]), rows))
    alone = [
        base.compute_logits(base.compute_states(base.compute_prefix([prompt]), [Input([5, 17, 40], (), 0)]))[0]
        for prompt in (first, second)
    ]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_peft_gives_every_row_the_active_prompt() -> None:
    base, config = family("gpt2"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(copy.deepcopy(base.model), config, adapter_name="a").eval()
    model.add_adapter("b", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([[5, 17], [5, 17]]), attention_mask=torch.ones(2, 2), adapter_names=["a", "b"]
        ).logits
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-9, atol=1e-9)


def test_logits_have_no_positions_of_the_prompt() -> None:
    base = family("gpt2")
    assert len(base.compute_states(base.compute_prefix(prompts(base)[:1]), [Input([5, 17], (40,), 0)])) == 2
    model = peft.get_peft_model(
        copy.deepcopy(base.model), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    assert model(input_ids=torch.tensor([[5, 17, 40]])).logits.shape[1] == 6


# ---------------------------------------------------------------- stored prompts


def test_a_prompt_loads_onto_its_own_base_only(tmp_path: Path) -> None:
    stored = artifact()
    with pytest.raises(BaseModelError):
        unpack(stored, stored.manifest.base_model.model_copy(update={"fingerprint": "f" * 64}))
    gpt2, llama = family("gpt2"), family("llama")
    saved_by_peft(gpt2, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), tmp_path)
    assert peft.PeftModel.from_pretrained(copy.deepcopy(llama.model), tmp_path)  # PEFT: same width, no objection


@pytest.mark.parametrize("method", ["prompt", "residual", "p_tuning", "prefix"])
def test_a_stored_prompt_trains_further(tmp_path: Path, method: str) -> None:
    base = family("llama", torch.float32)
    before = job(base, "movies", method=method, store_dtype="float16", steps=2)
    fields = {
        "task": "movies",
        "method": method,
        "placement": "before_bos",
        "base_model": base.ref,
        "template": "{text}",
        "labels": LABELS,
        "max_input_tokens": 50,
        "snapshot": "c" * 64,
        "recipe": "d" * 64,
        "training_key": "e" * 64,
        "seed": 0,
        "engine_version": 1,
    }
    stored = unpack(pack(before.initial, "float16", fields), base.ref)
    given = make_initial_prompt(base, before.tune, LABELS, stored)
    [member] = run_gang(base, [before._replace(initial=given)], NoTracker()).members
    assert member.error is None
    assert member.step == 2
    assert not all(
        torch.equal(one, two)
        for one, two in zip(list_tensors(given), list_tensors(member.parameterisation.build_prompt()), strict=True)
    )


def test_peft_refuses_to_train_a_stored_prompt_further(tmp_path: Path) -> None:
    base = family("llama", torch.float32)
    saved_by_peft(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), tmp_path)
    with pytest.raises(ValueError, match="Cannot set a prompt learning adapter to trainable"):
        peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path, is_trainable=True)


def test_an_encoder_decoder_stores_as_many_rows_as_it_reads(tmp_path: Path) -> None:
    base = seq2seq_family("t5 relu tied", torch.float32)
    fields = artifact().manifest.model_dump(
        exclude={"tensors", "tensor_sha256", "num_virtual_tokens", "base_model"}
    ) | {"base_model": base.ref}
    assert pack(job(base, "movies").initial, "float32", fields).manifest.tensors["embeddings"].shape == [3, 32]
    theirs = saved_by_peft(base, peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3), tmp_path)
    assert theirs.get_prompt_embedding_to_save("default").shape == (6, 32)


@pytest.mark.parametrize("method", ["residual", "p_tuning", "prefix"])
def test_the_best_checkpoint_of_a_reparameterised_prompt_is_kept(method: str) -> None:
    base = family("llama", torch.float32)
    [member] = run_gang(
        base, [job(base, "movies", method=method, steps=12, eval_every=1, patience=12, learning_rate=0.3)], NoTracker()
    ).members
    assert member.best is not None
    assert member.best_dev == max(point.dev for point in member.curve if point.dev is not None)
    again = best_again(base, member.job, member.best)
    assert again.best_dev == member.best_dev


def best_again(base: FrozenBase, of: Job, prompt: SoftPrompt) -> Member:
    """A member that is judged with this stored prompt alone: nothing of the network is needed."""
    from ptpipeline.serving.answers import answer

    member = Member.of(of)
    cache = base.compute_prefix([place_prompt(base, prompt, of.tune.placement)])
    member.judge(prompt, answer(base, cache, member.build_dev_requests(0)))
    return member


def test_peft_cannot_go_back_to_a_reparameterised_checkpoint() -> None:
    base = family("llama", torch.float32)
    model = peft.get_peft_model(
        copy.deepcopy(base.model), peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    before = model.get_prompt(1)
    peft.set_peft_model_state_dict(model, peft.get_peft_model_state_dict(model))
    assert (model.get_prompt(1) - before).abs().max() > 0.01
