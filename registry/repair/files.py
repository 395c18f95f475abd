"""Compares what was derived with what names it: plots, records and pages with their keys, results with their reports.

All of it can be made again, so what was altered is set aside, and nothing shows it or decides on it any more.
"""

from collections.abc import Iterator

from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import ObjectSignature, Quarantined, Results, is_page, parse
from ptpipeline.storage.keys import signatures_prefix, task_prefix
from ptpipeline.storage.signed import SignedStore, Trust
from registry.ledger.results import Publication
from registry.listing import read_accepted
from registry.repair.difference import FIX, Difference, describe_object
from registry.repair.inventory import Inventory
from registry.versions.content import set_aside
from registry.versions.mlflow_alias import Action
from registry.versions.publish import forget_files, load_card, write_page


def compare_files(inventory: Inventory) -> Iterator[Difference]:
    """Yield plots, records beside prompts, pages and quarantined copies that were altered, then those that are gone."""
    for key, why in sorted(inventory.altered.items()):
        if not isinstance(address := parse(key), Results):
            copy = isinstance(address, Quarantined)
            mend = f"nothing reads this copy; delete the object {key} if nobody needs it" if copy else FIX
            yield describe_object(inventory.task, "file", key, "the content that its key names", why, mend)
    for publication in inventory.publications:
        for key in _list_files(publication):
            if key not in inventory.listing.objects:
                made = f"a file of prompt {publication.tuned.digest[:12]}"
                yield describe_object(inventory.task, "file", key, made, "no such object", FIX)


def compare_signatures(inventory: Inventory) -> Iterator[Difference]:
    """Yield files that are what they should be and that no trusted key signed: readers refuse them.

    Each file that a page shows has to be signed, and one page of each version. Of what was replaced since, whose
    signature nobody renews, those are told that a trusted key signed once.
    """
    store = inventory.registry.store
    if not isinstance(store, SignedStore) or store.trust is None:
        return
    pages = _list_pages(inventory)
    due = {key for made in inventory.publications for key in (*_list_files(made), made.mistakes or "")}
    due |= _list_signed(store, store.trust, inventory.task)
    files = {*inventory.listing.files()} - inventory.altered.keys()
    answers = read_accepted(store, sorted(files & due.union(*pages)))
    refused = {key: answer for key, answer in answers.items() if isinstance(answer, str)}
    due |= {of_version[-1] for of_version in pages if refused.keys() >= {*of_version}}
    for key in sorted(refused.keys() & due):
        mend = f"ptp sign {inventory.task}"
        yield describe_object(inventory.task, "file", key, "a file that a trusted key signed", refused[key], mend)


def compare_results(inventory: Inventory) -> Iterator[Difference]:
    """Yield results per row that were altered; those that are gone are measured again if anything asks for them."""
    for key, why in sorted(inventory.altered.items()):
        if isinstance(parse(key), Results):
            yield describe_object(inventory.task, "results", key, "the results that their report states", why, FIX)


def mend_files(inventory: Inventory) -> list[Action]:
    """Set altered files aside and forget those that are gone; write pages again."""
    task, actions = inventory.task, list[Action]()
    altered = [key for key in sorted(inventory.altered) if not isinstance(parse(key), Results | Quarantined)]
    for key in altered:
        actions.append(Action(task=task, what=set_aside(inventory.registry.store, key)))
    left = inventory.listing.objects.keys() - {*altered}
    for publication in inventory.publications:
        gone = {key for key in _list_files(publication) if key not in left}
        if gone:
            forget_files(inventory.registry, publication, gone)
            what = f"{len(gone)} files of prompt {publication.tuned.digest[:12]} forgotten; a run makes them again"
            actions.append(Action(task=task, what=what))
    for digest in inventory.kept_versions().values() if actions else ():
        card = load_card(inventory.registry, task, digest)
        write_page(inventory.registry, card, inventory.registry.ledger.version_of(task, digest))
    return actions


def mend_results(inventory: Inventory) -> list[Action]:
    """Set altered results aside, so that what asks for them measures again."""
    altered = [key for key in sorted(inventory.altered) if isinstance(parse(key), Results)]
    return [Action(task=inventory.task, what=set_aside(inventory.registry.store, key)) for key in altered]


def _list_files(publication: Publication) -> list[str]:
    """The files that a page shows; mistakes are not missed, because a person may delete texts."""
    near = [publication.neighbours] if publication.neighbours else []
    return [*publication.plots.values(), *near, *publication.wayward]


def _list_pages(inventory: Inventory) -> list[list[str]]:
    """The sound pages of each version that has one, the newest last."""
    known, listing = {*inventory.kept_versions().values()}, inventory.listing
    stored = [
        sorted(items, key=lambda item: item.modified) for digest, items in listing.prompts.items() if digest in known
    ]
    pages = [
        [item.key for item in items if is_page(item.key) and item.key not in inventory.altered] for items in stored
    ]
    return [of_version for of_version in pages if of_version]


def _list_signed(store: ObjectStore, trust: Trust, task: str) -> set[str]:
    """The objects of the task at which a signature of a trusted key lies, whether it is valid or not."""
    addresses = map(parse, store.keys(signatures_prefix(task_prefix(task))))
    return {found.signed for found in addresses if isinstance(found, ObjectSignature) and found.signer in trust.keys}
