"""Compares what was derived with what names it: plots, records and pages with their keys, results with their reports.

All of it can be made again, so what was altered is set aside, and nothing shows it or decides on it any more.
"""

from collections.abc import Iterator

from ptpipeline.storage.addresses import Quarantined, Results, parse
from ptpipeline.storage.signed import SignedStore
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
    """Yield files that are what they should be and that no trusted key signed: readers refuse them."""
    store = inventory.registry.store
    if not isinstance(store, SignedStore) or store.trust is None:
        return
    files = {key for made in inventory.publications for key in (*_list_files(made), made.mistakes or "")}
    sound = files & inventory.listing.objects.keys() - inventory.altered.keys()
    for key, answer in read_accepted(store, sorted(sound)).items():
        if isinstance(answer, str):
            mend = f"ptp sign {inventory.task}"
            yield describe_object(inventory.task, "file", key, "a file that a trusted key signed", answer, mend)


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
