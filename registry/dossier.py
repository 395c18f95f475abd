"""What the ledger knows about a prompt, beside its bytes in the store: so that a lost ledger can be made anew."""

import hashlib
from typing import Literal

from pydantic import ValidationError

from ptpipeline.errors import ArtifactError
from ptpipeline.records import Record, Report, Verdict, prompt_prefix
from ptpipeline.storage import ObjectStore
from registry.memory import Publication


class Dossier(Record):
    """How a prompt was made, measured and judged, at one time; a prompt that is judged again has several."""

    schema_version: Literal[1] = 1
    publication: Publication
    report: Report | None
    verdict: Verdict | None


def write_dossier(store: ObjectStore, dossier: Dossier) -> str:
    """Store the dossier under a name made of its content, so that a repeat changes nothing; returns its key."""
    body = dossier.model_dump_json().encode()
    tuned = dossier.publication.tuned
    key = f"{prompt_prefix(tuned.task, tuned.digest)}/records/{hashlib.sha256(body).hexdigest()[:16]}.json"
    store.create(key, body)
    return key


def read_dossier(store: ObjectStore, key: str) -> Dossier:
    """The dossier at that key; NotFound, or ArtifactError where it is altered."""
    body = store.read(key).body
    try:
        dossier = Dossier.model_validate_json(body)
    except ValidationError as error:
        raise ArtifactError(f"{store.url}/{key}: not a dossier: {error.errors()[0]['msg']}; it is altered or from a newer ptpipeline") from None
    tuned = dossier.publication.tuned
    if key != f"{prompt_prefix(tuned.task, tuned.digest)}/records/{hashlib.sha256(body).hexdigest()[:16]}.json":
        raise ArtifactError(f"{store.url}/{key}: its content belongs elsewhere; it was altered")
    return dossier
