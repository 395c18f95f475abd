"""The address book of the object store: every key is built here, and parsed in `addresses`; no other module knows one.

    prompts/<task>/<digest>/prompt.safetensors         the tensors of a prompt
    prompts/<task>/<digest>/manifest.json              written last: the prompt is complete
    prompts/<task>/<digest>/signature-<key>.json       a signature of the manifest
    prompts/<task>/<digest>/plots/<name>-<sha256>.png  what its card shows
    prompts/<task>/<digest>/<name>-<sha256>.json       neighbours, mistakes, wayward
    prompts/<task>/<digest>/report-<sha256>.html       its page
    prompts/<task>/<digest>/records/<sha256>.json      a dossier: how it was made, measured and judged
    prompts/<task>/aliases/<alias>.json                what an alias names: the pointer that servers read
    prompts/_/aliases/moved.json                       changes after each pointer; no task has this name
    prompts/<task>/history/<alias>/<seq>.json          a promotion of that alias
    prompts/<task>/versions/<number>.json              what a number names
    prompts/<task>/quarantine/<name>-<hash>[.json]     a copy of what was altered or misplaced
    snapshots/<task>/<digest>/<split>.parquet          rows of a split
    snapshots/<task>/<digest>/manifest.json            written last: the snapshot is complete
    snapshots/<task>/quarantine/<name>-<hash>          a copy of an altered manifest
    reports/<task>/quarantine/<name>-<hash>            a copy of altered results
    reports/<task>/<evaluation key>/rows.parquet       results of an evaluation, row by row
    releases/<name>.json                               a set of versions that was promoted together
    checkpoints/<digest>.safetensors                   a training in progress
    servers/<server>.json                              what a server holds
    signatures/<key>/<sha256>/<key id>.json            a signature of the bytes with that hash at that other key
    probe/<nonce>/<name>                               what the test of conditional puts writes

Names that users choose are checked where they come in (`is_name`), and every store checks each key (`check_key`).
"""

import hashlib
import re

MANIFEST_FILE = "manifest.json"
TENSOR_FILE = "prompt.safetensors"

PROMPTS, SNAPSHOTS, REPORTS, RELEASES = "prompts", "snapshots", "reports", "releases"
CHECKPOINTS, SERVERS, PROBES, SIGNATURES = "checkpoints", "servers", "probe", "signatures"

ALIASES, HISTORY, VERSIONS, QUARANTINE, DOSSIERS = "aliases", "history", "versions", "quarantine", "records"
ROWS_FILE = "rows.parquet"
_SERVER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


# ---------------------------------------------------------------- prompts


def task_prefix(task: str) -> str:
    """Return the folder of all that belongs to a task's prompts."""
    return f"{PROMPTS}/{task}"


def prompt_prefix(task: str, digest: str) -> str:
    """Return the folder of the prompt of that digest."""
    return f"{task_prefix(task)}/{digest}"


def manifest_key(task: str, digest: str) -> str:
    """Return the key of a prompt's manifest."""
    return f"{prompt_prefix(task, digest)}/{MANIFEST_FILE}"


def tensors_key(task: str, digest: str) -> str:
    """Return the key of a prompt's tensors."""
    return f"{prompt_prefix(task, digest)}/{TENSOR_FILE}"


def signature_file(key_id: str) -> str:
    """Return the name of the file with the signature that the key of that id made."""
    return f"signature-{key_id}.json"


def signature_key(task: str, digest: str, key_id: str) -> str:
    """Return the key of the signature that the signing key of that id made for a prompt."""
    return f"{prompt_prefix(task, digest)}/{signature_file(key_id)}"


def plot_key(task: str, digest: str, name: str, body: bytes) -> str:
    """Return the key of a plot, which names its content."""
    return f"{prompt_prefix(task, digest)}/plots/{name}-{_hash(body)}.png"


def companion_key(task: str, digest: str, name: str, body: bytes) -> str:
    """Return the key of a record that is stored beside a prompt, such as its neighbours; it names its content."""
    return f"{prompt_prefix(task, digest)}/{name}-{_hash(body)}.json"


def page_key(task: str, digest: str, body: bytes) -> str:
    """Return the key of a version's page, which names its content."""
    return f"{prompt_prefix(task, digest)}/report-{_hash(body)}.html"


def dossiers_prefix(task: str, digest: str) -> str:
    """Return the folder of a prompt's dossiers."""
    return f"{prompt_prefix(task, digest)}/{DOSSIERS}"


def dossier_key(task: str, digest: str, body: bytes) -> str:
    """Return the key of a dossier, which names its content."""
    return f"{dossiers_prefix(task, digest)}/{_hash(body)}.json"


# ---------------------------------------------------------------- aliases and versions


def aliases_prefix(task: str) -> str:
    """Return the folder of a task's pointers."""
    return f"{task_prefix(task)}/{ALIASES}"


def pointer_key(task: str, alias: str) -> str:
    """Return the key of an alias's pointer."""
    return f"{aliases_prefix(task)}/{alias}.json"


MOVED_KEY = f"{PROMPTS}/_/{ALIASES}/moved.json"  # below `aliases`: who may write or read a pointer may do so here


def histories_prefix(task: str) -> str:
    """Return the folder of the histories of a task's aliases."""
    return f"{task_prefix(task)}/{HISTORY}"


def history_prefix(task: str, alias: str) -> str:
    """Return the folder of an alias's history."""
    return f"{histories_prefix(task)}/{alias}"


def history_key(task: str, alias: str, seq: int) -> str:
    """Return the key of promotion `seq` of an alias."""
    return f"{history_prefix(task, alias)}/{seq:06d}.json"


def versions_prefix(task: str) -> str:
    """Return the folder of the names of a task's versions."""
    return f"{task_prefix(task)}/{VERSIONS}"


def version_key(task: str, number: int) -> str:
    """Return the key of the name of a version."""
    return f"{versions_prefix(task)}/{number}.json"


def quarantine_key(key: str, body: bytes) -> str:
    """Return the key for a copy of the altered bytes that lay at another key of a task, below the same root.

    So nobody may read the copy who may not read the original.
    """
    root, task, *names = key.split("/")
    return _quarantine(task, "-".join(names).removesuffix(".json"), body, root)


def quarantined_pointer_key(task: str, alias: str, body: bytes) -> str:
    """Return the key for a copy of a pointer that shows no promotion of the ledger."""
    return f"{_quarantine(task, alias, body)}.json"


def quarantined_version_key(task: str, number: int, body: bytes) -> str:
    """Return the key for a copy of a version's name that does not name the ledger's prompt."""
    return f"{_quarantine(task, f'version-{number}', body)}.json"


def quarantined_release_key(name: str, body: bytes) -> str:
    """Return the key for a copy of a release that is not the ledger's."""
    return f"{_quarantine(RELEASES, name, body)}.json"


# ---------------------------------------------------------------- everything else


def snapshots_prefix(task: str) -> str:
    """Return the folder of a task's snapshots."""
    return f"{SNAPSHOTS}/{task}"


def snapshot_prefix(task: str, digest: str) -> str:
    """Return the folder of the snapshot of that digest."""
    return f"{snapshots_prefix(task)}/{digest}"


def snapshot_manifest_key(task: str, digest: str) -> str:
    """Return the key of a snapshot's manifest."""
    return f"{snapshot_prefix(task, digest)}/{MANIFEST_FILE}"


def split_key(task: str, digest: str, split: str) -> str:
    """Return the key of a split's rows."""
    return f"{snapshot_prefix(task, digest)}/{split}.parquet"


def reports_prefix(task: str) -> str:
    """Return the folder of the results of a task's evaluations."""
    return f"{REPORTS}/{task}"


def results_key(task: str, evaluation_key: str) -> str:
    """Return the key of an evaluation's results, row by row."""
    return f"{reports_prefix(task)}/{evaluation_key}/{ROWS_FILE}"


def release_key(name: str) -> str:
    """Return the key of a release."""
    return f"{RELEASES}/{name}.json"


def checkpoint_key(digest: str) -> str:
    """Return the key of the checkpoint of a training; `digest` is over all that the training follows from."""
    return f"{CHECKPOINTS}/{digest}.safetensors"


def is_server_name(name: str) -> bool:
    """Whether a server may report under that name, and so have it become part of a key."""
    return _SERVER.fullmatch(name) is not None


def server_key(server: str) -> str:
    """Return the key of a server's report."""
    return f"{SERVERS}/{server}.json"


def signatures_prefix(key: str) -> str:
    """Return the folder of the signatures of all that ever lay at the key, or below it."""
    return f"{SIGNATURES}/{key}"


def object_signatures_prefix(key: str, digest: str) -> str:
    """Return the folder of the signatures of the bytes with that sha256 at the key."""
    return f"{signatures_prefix(key)}/{digest}"


def object_signature_key(key: str, digest: str, key_id: str) -> str:
    """Return the key of the signature that the signing key of that id made for those bytes."""
    return f"{object_signatures_prefix(key, digest)}/{key_id}.json"


def probe_key(nonce: str, name: str) -> str:
    """Return the key of an object that the test of conditional puts writes and removes."""
    return f"{PROBES}/{nonce}/{name}"


def _quarantine(task: str, name: str, body: bytes, root: str = PROMPTS) -> str:
    return f"{root}/{task}/{QUARANTINE}/{name}-{_hash(body)[:16]}"  # for people: nobody believes a copy


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
