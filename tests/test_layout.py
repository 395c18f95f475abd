"""Tests stand beside what they test."""

from pathlib import Path

TESTS = Path(__file__).parent
# tests/data is of ptpipeline/data, tests/registry of registry, and a helper of tests has its test beside it
TREES = (TESTS.parent / "ptpipeline", TESTS.parent, TESTS)
WHOLE = ("deploy", "e2e", "soak", "golden", "cases")  # folders about everything together

TOPICS = {
    "data/test_damaged_parquet.py": "Parquet files that lie damaged on a disk",
    "data/test_given_splits.py": "splits that the source gives, from source to snapshot",
    "data/test_places.py": "the rows of a shipped task in every kind of place",
    "data/test_targets.py": "rows of free text, from source to snapshot",
    "data/test_written.py": "tables as other programs write them",
    "evaluation/test_chat.py": "the hard prompt of a chat",
    "evaluation/probes/test_figures.py": "norms and latency",
    "flows/cli/test_boundaries.py": "what a path, a stream or a user may do to any verb",
    "flows/cli/test_ingest.py": "what a person sees of an ingest",
    "flows/cli/test_beside.py": "canaries and shadows by the verbs of `ptp`",
    "serving/test_faulty_rows.py": "what fails while texts are generated together",
    "server/test_options.py": "what is not taken of OpenAI's API, by its own client",
    "server/test_bases.py": "an encoder-decoder and chats over HTTP",
    "server/test_swap.py": "a version that changes under an open stream",
    "server/test_stalled.py": "stalled clients at the limits as they are shipped",
    "server/test_day.py": "a day without the store, asked over HTTP",
    "serving/test_live_reports.py": "what a server tells the store of itself",
    "serving/test_live_foreign.py": "what a server does with bytes that somebody else wrote",
    "flows/cli/test_quiet.py": "a refused candidate in every view, under `gate.figures: quiet`",
    "flows/cli/test_codes.py": "what verbs that ask Prefect end with, against a small server",
    "flows/server/test_install.py": "automations against a small server",
    "flows/server/test_pieces.py": "the pieces of a bootstrap, one by one and without their servers",
    "flows/server/test_prefect.py": "Prefect's client side against a small server",
    "flows/test_outages.py": "a night whose ledger or store is away at any instant",
    "flows/stages/test_isolation.py": "what an error ends, and what it does not",
    "flows/stages/test_measures.py": "what is measured beside a comparison",
    "flows/stages/test_modes.py": "how the chain runs: by force, elsewhere, beside another run",
    "flows/stages/test_bad_input.py": "input that ends a run in one sentence",
    "flows/stages/test_collected.py": "a run behind a garbage collection, and beside one",
    "flows/stages/test_altered_results.py": "results per row that somebody altered",
    "flows/stages/test_forged_checkpoint.py": "a checkpoint that somebody forged",
    "flows/stages/test_full_disk.py": "a ledger or a store without room",
    "flows/stages/test_chat.py": "a task of chat messages through the whole chain",
    "flows/stages/test_control_tokens.py": "names of control tokens through the whole chain",
    "flows/stages/test_fields.py": "a task of several columns through the whole chain",
    "flows/stages/test_labels.py": "tasks of very many labels, and of one that is never right, through the whole chain",
    "flows/stages/test_generation.py": "a task of free text through the whole chain",
    "flows/stages/test_compute_types.py": "nights on machines that compute in different types",
    "flows/stages/test_killed.py": "a training process that is killed",
    "flows/stages/test_methods.py": "every method of the recipe through the whole chain",
    "flows/stages/test_privacy.py": "no text of a row leaves the snapshot",
    "flows/stages/test_progress.py": "what a run shows while it works",
    "flows/stages/test_sources.py": "a task whose rows are on servers",
    "flows/stages/test_report.py": "the page of a version that a run made",
    "flows/cli/test_actor.py": "who the history names",
    "models/test_download.py": "base models from a hub",
    "prompts/test_key_files.py": "the files that hold the keys of signatures",
    "prompts/test_signature.py": "signatures of prompts",
    "prompts/test_peft_faults.py": "what is wrong in PEFT and right here",
    "registry/garbage/test_interleaving.py": "what changes while a collection runs",
    "registry/garbage/test_races.py": "a collection beside others, killed, and in any order",
    "evaluation/probes/test_known.py": "rows that were answered before they are probed",
    "flows/stages/test_known_scores.py": "what an evaluation hands on to the probes",
    "flows/cli/test_rerun.py": "a command that is killed and repeated",
    "registry/ledger/test_full_postgresql.py": "a PostgreSQL server without room",
    "registry/ledger/test_questions.py": "what the other rooms ask the ledger",
    "registry/repair/test_every_object.py": "rot in every kind of object",
    "registry/repair/test_forged.py": "records that somebody forged",
    "registry/repair/test_goes_on.py": "one altered object and everything else",
    "registry/lineage/test_erasure.py": "what to do so that nothing in use has learnt from a row",
    "registry/repair/test_agreement.py": "what counts as agreeing with MLflow, by records alone",
    "registry/repair/test_proofs.py": "what a rebuild believes",
    "registry/repair/test_signed.py": "a registry with keys",
    "registry/repair/test_second_look.py": "what heals between two looks",
    "registry/test_exchanged.py": "folders of the store that somebody exchanges for links",
    "registry/test_power_loss.py": "every state that a power loss may leave of a folder store",
    "registry/versions/test_killed_alias.py": "a promotion that is killed while it writes to MLflow",
    "registry/versions/test_guards.py": "what guards every verb that moves an alias",
    "registry/versions/test_mlflow_recheck.py": "what changes while an edit in MLflow is judged",
    "registry/versions/test_pages.py": "the pages of a version in the store",
    "registry/versions/test_steps.py": "the order of publishing and projecting",
    "server/test_fuzz.py": "whatever a client sends, by the OpenAPI schema",
    "serving/test_scoring.py": "length normalisation and calibration of a ranking",
    "storage/test_durability.py": "what is synced before it is seen",
    "storage/test_faults.py": "a network that fails",
    "registry/garbage/test_kept.py": "what a collection keeps",
    "task/test_conditions.py": "each condition of a task file by itself",
    "storage/test_identities.py": "the roles of deploy/s3",
    "storage/test_links.py": "links and other things that others put into a folder store",
    "storage/test_private.py": "who may read what is written",
    "test_advice.py": "what messages about rows advise, and the tests that follow it",
    "test_constraints.py": "the pins of `make install` and `make audit`",
    "test_imports.py": "what is left out of a process that does not need it",
    "test_layout.py": "this rule",
    "test_package_bounds.py": "what a package index may take of disk, memory and time",
    "test_readme.py": "what the README names",
    "tuning/test_dev_rows.py": "which dev rows a training answers",
    "tuning/test_gang.py": "many prompts in one pass",
    "tuning/test_generation.py": "tasks of free text in a gang",
    "tuning/test_golden.py": "what a training gives, to the bit",
    "tuning/test_recipes.py": "what a recipe unfolds into",
}


def modules_of(test: Path) -> list[Path]:
    """The modules, or the packages of the same name as their folder, that a test file may be of."""
    folder, name = test.parent, test.stem.removeprefix("test_")
    modules = [f"{name}.py", name] + (["."] if folder.name == name else [])
    return [tree / folder / module for tree in TREES for module in modules]


def test_every_test_stands_at_the_place_of_its_module_or_is_a_topic() -> None:
    files = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    assert len(files) > 80
    strays = [
        str(file)
        for file in files
        if file.parts[0] not in WHOLE
        and str(file) not in TOPICS
        and not any(module.exists() for module in modules_of(file))
    ]
    assert strays == []


def test_every_topic_has_its_tests_and_no_module() -> None:
    assert [topic for topic in TOPICS if not (TESTS / topic).exists()] == []
    assert [topic for topic in TOPICS if any(module.exists() for module in modules_of(Path(topic)))] == []
