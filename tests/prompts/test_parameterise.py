"""Every parameterisation starts at the recipe's initial prompt, learns, and folds into what is stored."""

import pytest
import torch

from ptpipeline.models.inputs import KeyValues, SoftPrompt, list_tensors
from ptpipeline.prompts.parameterise import parameterise
from ptpipeline.prompts.tensors import round_to_stored
from ptpipeline.task.recipe import Tune

RECIPES = {
    "prompt": Tune(),
    "residual": Tune(method="residual", encoder_width=8),
    "p_tuning lstm": Tune(method="p_tuning", encoder_width=8),
    "p_tuning mlp": Tune(method="p_tuning", encoder="mlp"),
    "prefix": Tune(method="prefix", encoder_width=8),
}


@pytest.fixture(params=sorted(RECIPES))
def tune(request: pytest.FixtureRequest) -> Tune:
    return RECIPES[request.param]


def initial(tune: Tune) -> SoftPrompt:
    torch.manual_seed(0)
    if tune.method == "prefix":
        return KeyValues(torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4))
    return torch.randn(5, 16) * 0.02


def test_starts_at_the_initial_prompt(tune: Tune) -> None:
    for ours, given in zip(
        list_tensors(parameterise(tune, initial(tune)).build_prompt()), list_tensors(initial(tune)), strict=True
    ):
        torch.testing.assert_close(ours, given, rtol=1e-6, atol=1e-6)


def test_every_parameter_learns(tune: Tune) -> None:
    made = parameterise(tune, initial(tune))
    sum(
        (tensor * torch.linspace(-1, 1, tensor.numel()).view_as(tensor)).sum()
        for tensor in list_tensors(made.build_prompt())
    ).backward()  # type: ignore[union-attr]
    silent = [
        name
        for name, parameter in made.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert not silent


@pytest.mark.parametrize("width", [None, 8])
@pytest.mark.parametrize(
    ("method", "encoder", "usual"),
    [("residual", None, 800), ("prefix", None, 512), ("p_tuning", "mlp", 16), ("p_tuning", "lstm", 16)],
)
def test_a_network_is_as_wide_as_the_recipe_says_or_as_the_papers(
    method: str, encoder: str | None, usual: int, width: int | None
) -> None:
    tune = Tune(method=method, encoder_width=width, **({"encoder": encoder} if encoder else {}))  # type: ignore[arg-type]
    network = parameterise(tune, initial(tune)).network
    assert isinstance(network, torch.nn.Module)
    gates = 4 if encoder == "lstm" else 1  # of an LSTM, whose weights are one tensor
    assert len(next(network.parameters())) == gates * (width or usual)


def test_one_seed_makes_one_network(tune: Tune) -> None:
    first, second = (parameterise(tune, initial(tune)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_leaves_the_global_generator_alone(tune: Tune) -> None:
    start = initial(tune)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    parameterise(tune, start)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_stored_does_not_train_on_with_the_parameters(tune: Tune) -> None:
    prompt = initial(tune)
    stored = round_to_stored(prompt, "float32")
    for tensor in list_tensors(prompt):
        tensor += 1
    assert all(
        torch.equal(one + 1, other) for one, other in zip(list_tensors(stored), list_tensors(prompt), strict=True)
    )
