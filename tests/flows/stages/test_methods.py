"""Every method of the recipe through the whole chain on a tiny model: trained, stored, gated, served from the store
alone.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ptpipeline
from flows.cli.render import VersionDetails, print_version
from flows.on_demand.interpret import rank_neighbours
from flows.stages.outcome import Outcome
from ptpipeline.errors import DataError, NotFound, TaskFileError
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.task.folder import load_sources
from registry.repair.doctor import examine
from registry.versions.commit import Cause
from registry.versions.promotion import rollback
from tests.flows.project import Project
from tests.tiny import sentences

Served = Callable[[], list[str]]
START = 'init: {text: " yes"}'
PLAIN = f"num_virtual_tokens: 4, {START}"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, ("tiny-sentiment",))


def manifest(project: Project, outcome: Outcome) -> PromptManifest:
    registry = project.stages.registry
    return read_artifact(
        registry.store, outcome.task, registry.ledger.version(outcome.task, outcome.version).digest
    ).manifest


def accuracy(project: Project) -> float:
    """Of the promoted version, read back through the serving path, on sentences that nobody trained on."""
    fresh = sentences(60, seed=9)
    answers = ptpipeline.load("tiny-sentiment", project.settings).predict([text for text, _ in fresh])
    return sum(answer.label == label for answer, (_, label) in zip(answers, fresh, strict=True)) / len(fresh)


@pytest.mark.parametrize(
    ("recipe", "method", "names"),
    [
        (f"method: residual, encoder_width: 32, {PLAIN}", "residual", ["embeddings"]),
        (f"method: p_tuning, encoder: lstm, encoder_width: 16, {PLAIN}", "p_tuning", ["embeddings"]),
        (f"method: p_tuning, encoder: mlp, {PLAIN}", "p_tuning", ["embeddings"]),
        (f"method: prefix, encoder_width: 32, {PLAIN}", "prefix", ["prefix.key", "prefix.value"]),
        (f"method: ensemble, ensemble: {{members: 3, combine: vote}}, {PLAIN}", "ensemble", []),
        (f"search: {{length: [2, 4], seed: [0, 1]}}, {START}", "prompt", ["embeddings"]),
    ],
)
def test_each_method_trains_gates_and_serves(project: Project, recipe: str, method: str, names: list[str]) -> None:
    project.edit(PLAIN, recipe)
    outcome = project.run()
    assert (outcome.status, outcome.verdict) == ("promoted", "passed")
    stored = manifest(project, outcome)
    assert (stored.method, sorted(stored.tensors)) == (method, names)
    assert accuracy(project) > 0.7
    assert examine(project.stages.registry) == []
    project.run()
    assert not project.trained


def test_an_ensemble_answers_in_one_batch_as_its_members_average(project: Project) -> None:
    project.edit(PLAIN, f"method: ensemble, ensemble: {{members: 2, combine: average}}, {PLAIN}")
    outcome = project.run()
    predictor = ptpipeline.load("tiny-sentiment", project.settings)
    engine, texts = predictor.engine, ["a good film", "very poor and dull", "fine"]
    combined = [answer.probabilities["positive"] for answer in predictor.predict(texts)]
    alone = []
    for digest in manifest(project, outcome).members.digests:  # type: ignore[union-attr]
        member = read_artifact(project.stages.registry.store, "tiny-sentiment", digest)
        engine.load(member)
        asked = [type(predictor)(engine, predictor.resolved._replace(artifact=member, members=[]))]
        alone.append([answer.probabilities["positive"] for answer in asked[0].predict(texts)])
    assert combined == pytest.approx([sum(pair) / 2 for pair in zip(*alone, strict=True)], rel=1e-5)
    with pytest.raises(DataError, match="its members have neighbours of their own"):
        rank_neighbours(project.stages, outcome.task, outcome.version)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["", "method: prefix, ", "method: ensemble, ensemble: {members: 2}, "])
def test_a_recipe_over_its_limit_of_bytes_is_refused_before_it_trains(project: Project, recipe: str) -> None:
    project.edit(PLAIN, f"{recipe}store_dtype: float32, {PLAIN}")
    project.edit("minimum: 0.7", "minimum: 0.7, checks: {bytes: {max_bytes: 1000}}")
    with pytest.raises(
        TaskFileError,
        match=r"tiny-sentiment: tune\.num_virtual_tokens: .* in float32 needs \d+ bytes, "
        r"gate\.checks\.bytes\.max_bytes allows 1000; take fewer",
    ):
        project.run()
    assert not project.trained
    project.edit("max_bytes: 1000", "max_bytes: 10000")
    project.run()
    assert project.trained


def test_a_search_reports_every_trial_and_keeps_the_best(project: Project) -> None:
    project.edit(PLAIN, f"search: {{length: [1, 4], learning_rate: [0.0000001, 0.05]}}, {START}")
    project.edit("learning_rate: 0.05,", "")
    outcome = project.run()
    stages = project.stages
    digest = stages.registry.ledger.version(outcome.task, outcome.version).digest
    tuned = stages.registry.ledger.publication(outcome.task, digest).tuned  # type: ignore[union-attr]
    assert len(tuned.trials) == 4
    assert tuned.best_dev == max(trial.best_dev for trial in tuned.trials if trial.best_dev is not None)
    assert stages.registry.store.exists(f"prompts/{outcome.task}/{digest}/manifest.json")


def test_a_search_that_halves_keeps_its_rule_and_what_each_trial_cost(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the record of the training, in what `ptp show` prints, and in the night's line."""
    project.edit(PLAIN, "num_virtual_tokens: 4, search: {learning_rate: [0.0000001, 0.05], halving: 2}")
    project.edit("learning_rate: 0.05,", "")
    outcome = project.run()
    registry = project.stages.registry
    version = registry.ledger.version(outcome.task, outcome.version)
    tuned = registry.ledger.publication(outcome.task, version.digest).tuned  # type: ignore[union-attr]
    dropped, kept = tuned.trials
    assert dropped.dropped is not None
    assert (dropped.dropped.step, dropped.best_step, kept.dropped) == (5, 5, None)
    assert dropped.dropped.dev < dropped.dropped.least == kept.best_dev == tuned.best_dev
    assert dropped.cost is not None
    assert kept.cost is not None
    assert tuned.cost is not None
    assert tuned.cost.tokens == dropped.cost.tokens + kept.cost.tokens == outcome.tokens
    assert kept.cost.tokens > 1.5 * dropped.cost.tokens
    assert 0 < dropped.cost.processor_seconds < kept.cost.processor_seconds
    assert outcome.processor_seconds == tuned.cost.processor_seconds
    print_version(
        VersionDetails(version=version, manifest=manifest(project, outcome), training=tuned, report=None, verdict=None),
        as_json=False,
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "halving: 2: of 2 trials the best on dev so far go on, with those that tie: 1 after step 5" in shown
    assert "tokens seconds processor seconds ended" in shown


def test_a_warm_start_descends_from_the_champion_and_trains_once(project: Project) -> None:
    first = project.run()
    project.edit('init: {text: " yes"}', "init: champion")
    second = project.run()
    assert manifest(project, second).parents == [
        project.stages.registry.ledger.version(first.task, first.version).digest
    ]
    project.run()
    assert not project.trained


def test_a_first_champion_start_is_cold_and_says_so(project: Project) -> None:
    project.edit('init: {text: " yes"}', "init: champion")
    assert manifest(project, project.run()).parents == []
    assert any("starts cold" in line for line in project.lines)


def test_an_ensemble_that_is_champion_is_no_start(project: Project) -> None:
    project.edit(PLAIN, f"method: ensemble, ensemble: {{members: 2}}, {PLAIN}")
    project.run()
    project.edit(f"method: ensemble, ensemble: {{members: 2}}, {PLAIN}", "num_virtual_tokens: 4, init: champion")
    assert manifest(project, project.run()).parents == []
    assert any("starts cold: the champion is an ensemble" in line for line in project.lines)


def test_a_version_starts_another_task(tmp_path: Path) -> None:
    project = Project(tmp_path, ("tiny-sentiment", "tiny-other"))
    source = project.run()
    project.edit('init: {text: " yes"}', "init: {version: tiny-sentiment@1}", "tiny-other")
    target = project.run("tiny-other")
    assert manifest(project, target).parents == [
        project.stages.registry.ledger.version("tiny-sentiment", source.version).digest
    ]


def test_a_task_that_starts_from_its_own_alias_is_refused(project: Project) -> None:
    project.edit('init: {text: " yes"}', "init: {version: tiny-sentiment@production}")
    with pytest.raises(TaskFileError, match="write `init: champion`"):
        project.run()


def test_a_changed_file_of_the_start_trains_anew(project: Project) -> None:
    path = project.folder / "start.npy"
    np.save(path, np.full((4, 64), 0.01, dtype=np.float32))
    project.edit('init: {text: " yes"}', f'init: {{file: "{path}"}}')
    project.run()
    project.run()
    assert not project.trained
    np.save(path, np.full((4, 64), 0.02, dtype=np.float32))
    project.run()
    assert project.trained


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((3, 64), np.float32), "3 tokens"),
        (np.zeros((4, 9), np.float32), "9 wide"),
        (np.full((4, 64), np.nan), "finite"),
        (np.zeros(4), "finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(project: Project, array: np.ndarray, expected: str) -> None:
    path = project.folder / "start.npy"
    np.save(path, array)
    project.edit('init: {text: " yes"}', f'init: {{file: "{path}"}}')
    with pytest.raises(Exception, match=expected):
        project.run()


def test_class_labels_need_a_token_each(project: Project) -> None:
    project.edit(PLAIN, "num_virtual_tokens: 1, init: class_labels")
    with pytest.raises(Exception, match="class_labels needs a virtual token for each of the 2 labels"):
        project.run()


def sharing(folder: Path) -> Project:
    """Two source tasks, a shared prompt over them, and a target."""
    project = Project(folder, ("tiny-a", "tiny-b", "tiny-sentiment"))
    (project.tasks / "shared_prompts.yaml").write_text(
        "tiny-shared: {base_model: tiny, sources: [tiny-a, tiny-b], tune: {num_virtual_tokens: 4, init: {text: "
        "' yes'}, steps: 10, "
        "batch_size: 8, learning_rate: 0.05, warmup_steps: 3, eval_every: 5}}\n"
    )
    project.edit(PLAIN, "method: multitask, shared: tiny-shared, num_virtual_tokens: 4")
    return project


@pytest.fixture
def sources(tmp_path: Path) -> Project:
    return sharing(tmp_path)


@pytest.fixture(scope="module")
def first_shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = sharing(tmp_path_factory.mktemp("first-shared"))
    made.run()
    return made


@pytest.fixture
def shared(sources: Project, first_shared: Project) -> None:
    """The sources ran once."""
    sources.lines += first_shared.copy(sources.folder).lines


def test_a_target_starts_from_the_shared_prompt(sources: Project) -> None:
    outcome = sources.run()
    ledger = sources.stages.registry.ledger
    shared = ledger.version("tiny-shared", 1)
    assert outcome.status == "promoted"
    assert manifest(sources, outcome).parents == [shared.digest]
    assert len(read_artifact(sources.stages.registry.store, "tiny-shared", shared.digest).manifest.parents) == 2
    assert ledger.head("tiny-shared", PRODUCTION) is None
    assert examine(sources.stages.registry) == []
    sources.run()
    assert not sources.trained


def test_a_changed_source_trains_the_shared_prompt_and_its_targets(sources: Project) -> None:
    first = sources.run()
    sources.edit("Sentiment:", "Feeling:", "tiny-a")
    second = sources.run()
    assert [v.number for v in sources.stages.registry.ledger.versions("tiny-shared")] == [2, 1]
    assert (first.version, second.version) == (1, 2)


def test_a_shared_prompt_of_another_length_is_refused(sources: Project) -> None:
    sources.edit("num_virtual_tokens: 4", "num_virtual_tokens: 5")
    with pytest.raises((DataError, Exception), match="starts from a prompt of 4 tokens"):
        sources.run()


@pytest.mark.usefixtures("promoted")
def test_a_champion_of_one_length_starts_no_search_over_lengths(project: Project) -> None:
    project.edit(PLAIN, "init: champion, search: {length: [4, 8]}")
    assert manifest(project, project.run()).parents == []


def test_a_champion_that_a_test_row_does_not_fit_leaves_the_decision_to_a_person(project: Project) -> None:
    """The champion's long prompt leaves 50 tokens for text; a longer row comes; the candidate is judged all the
    same.
    """
    project.edit("num_virtual_tokens: 4", "num_virtual_tokens: 200")
    project.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15, test: 0.25}\n  checks: {near_duplicate: off}")
    first = project.run()
    project.edit("num_virtual_tokens: 200", "num_virtual_tokens: 4")
    path = project.folder / "tiny-sentiment.csv"
    path.write_text(
        path.read_text()
        + "".join(
            f"{'the ' * 60}{word} {i},{label}\n"
            for i in range(12)
            for label, word in (("positive", "good"), ("negative", "bad"))
        )
    )
    second = project.run()
    assert first.status == "promoted"
    assert second.version == 2
    assert second.status in ("awaiting approval", "gate failed")


@pytest.mark.usefixtures("shared")
def test_a_source_that_goes_back_takes_the_shared_prompt_along(sources: Project) -> None:
    sources.edit("Sentiment:", "Feeling:", "tiny-a")
    sources.run()
    sources.edit("Feeling:", "Sentiment:", "tiny-a")
    sources.run()
    ledger = sources.stages.registry.ledger
    assert [row.version for row in ledger.history("tiny-shared", "current")] == [1, 2, 1]


@pytest.mark.usefixtures("shared")
def test_a_shared_prompt_that_a_person_moved_stays_there(sources: Project) -> None:
    sources.edit("Sentiment:", "Feeling:", "tiny-a")
    sources.run()
    rollback(sources.stages.registry, "tiny-shared", Cause("ann", "complaints"), alias="current")
    sources.run()
    assert sources.stages.registry.ledger.history("tiny-shared", "current")[-1].version == 1
    assert any("stays at version 1, where ann moved it" in line for line in sources.lines)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[tiny-a, tiny-b]", "[tiny-a, tiny-c]", "no task 'tiny-c'"),
        ("[tiny-a, tiny-b]", "[tiny-a, tiny-a]", "a source is listed twice"),
        ("[tiny-a, tiny-b]", "[tiny-a]", "sources"),
        ("base_model: tiny,", "base_model: other,", "is for base model tiny, not other"),
        ("tiny-shared:", "tiny-a:", "no shared prompt 'tiny-shared'"),
    ],
)
def test_a_wrong_shared_prompt_is_named_with_the_tasks(sources: Project, old: str, new: str, expected: str) -> None:
    path = sources.tasks / "shared_prompts.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises((TaskFileError, NotFound), match=expected):
        load_sources(sources.tasks, "tiny-shared")
