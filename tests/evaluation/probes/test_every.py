"""All probes together: which run, which measures are kept, and when a report has to be probed again."""

import math

import pytest

from ptpipeline.evaluation.probes.every import PROBES, Subject, probes_digest, run_probes
from ptpipeline.evaluation.probes.norms import measure_norms
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.serving.engine import Engine
from ptpipeline.task.policy import Bias, Checks
from tests.evaluation.probed import artifact, blind, embeddings, fields, opinions, rows, tiny

OFF = dict.fromkeys(PROBES, "off")
SWAPS = (("good", "bad"),)


def measured(checks: Checks, broken: bool = False) -> dict[str, float]:
    engine, made = opinions(blind(tiny(), " good") if broken else tiny())
    return run_probes(engine, Subject(made, (), rows(20, 2), rows(20, 1)), checks)


def test_measures_that_are_no_numbers_are_left_out() -> None:
    """Behind a word that the base reads as NaN no probability changes by any number; flips are counted all the same."""
    checks = Checks.model_validate(OFF | {"bias": {"swaps": SWAPS}})
    assert set(measured(checks)) == {"bias.rows", "bias.flips", "bias.shift"}
    broken = measured(checks, broken=True)
    assert set(broken) == {"bias.rows", "bias.flips"}
    assert all(math.isfinite(value) for value in broken.values())


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_runs_only_if_its_check_is_not_off(name: str) -> None:
    on = {"policy": "warn", "swaps": SWAPS} if name == "bias" else "warn"
    found = measured(Checks.model_validate(OFF | {name: on}))
    assert {measure.split(".")[0] for measure in found} == {name}


def test_nothing_is_probed_if_all_checks_are_off() -> None:
    assert measured(Checks.model_validate(OFF)) == {}


def test_bias_without_pairs_is_not_probed() -> None:
    assert measured(Checks.model_validate(OFF | {"bias": "warn"})) == {}


def test_only_the_fields_that_the_policy_names_are_changed() -> None:
    settings = OFF | {"robustness": {"fields": ["other"]}, "bias": {"swaps": SWAPS, "fields": ["other"]}}
    found = measured(Checks.model_validate(settings))
    assert (found["robustness.case"], found["robustness.white_space"], found["bias.rows"]) == (0, 0, 0)


@pytest.mark.parametrize("name", ["robustness", "bias"])
def test_each_probe_changes_the_fields_of_its_own_check(name: str) -> None:
    settings = {"robustness": {"fields": ["text"]}, "bias": {"swaps": SWAPS, "fields": ["text"]}}
    settings[name]["fields"] = ["other"]
    found = measured(Checks.model_validate(OFF | settings))
    assert [found["robustness.case"] > 0, found["bias.rows"] > 0] == [name == "bias", name == "robustness"]


def test_an_ensemble_is_loaded_and_probed_with_its_members() -> None:
    members = [artifact(tiny(), embeddings(tiny(), word)) for word in (" film", " yes")]
    made = pack_ensemble(members, "average", fields(tiny()) | {"method": "ensemble"})
    found = run_probes(
        Engine(tiny()), Subject(made, members, (), rows(5)), Checks.model_validate(OFF | {"norms": "warn"})
    )
    assert found == pytest.approx(measure_norms(Engine(tiny()), made, members))


def test_the_fields_of_a_check_that_is_no_probe_change_no_probe() -> None:
    assert probes_digest(Checks.model_validate({"leakage": {"fields": ["text"]}})) == probes_digest(Checks())


def test_a_report_is_probed_again_when_a_probe_is_switched_or_pairs_or_fields_change() -> None:
    settings = [Checks(), *(Checks.model_validate({name: "off"}) for name in PROBES)]
    settings += [Checks(bias=Bias(swaps=pairs)) for pairs in (SWAPS, (("he", "she"),))]
    settings += [Checks.model_validate({name: {"fields": ["text"]}}) for name in ("robustness", "bias")]
    assert len({probes_digest(one) for one in settings}) == len(settings)


def test_limits_change_no_probe() -> None:
    assert probes_digest(Checks.model_validate({"norms": {"max_ratio": 2}, "bias": "warn"})) == probes_digest(Checks())
