"""A card as one page of HTML, which opens without a server and loads nothing from elsewhere."""

import base64
import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from ptpipeline.prompts.sensitive import screen
from ptpipeline.records.reports import title_of
from ptpipeline.records.versions import PromptVersion
from ptpipeline.storage.keys import prompt_prefix
from registry.card.card import WITHHELD, Card, columns, seed_spread, selection_bias

if TYPE_CHECKING:
    from jinja2 import Template

CAPTIONS = {
    "differences": "Against champion and baselines, on the same rows",
    "slices": "Against the champion, part by part",
    "confusion": "Rows by true and predicted label",
    "reliability": "How right it is, over how sure it is",
    "learning_curve": "The training",
    "token_norms": "Norm and gradient of each virtual token over the training",
}


def render_page(card: Card, version: PromptVersion | None = None) -> bytes:
    """Return the page as UTF-8, the same for the same records; of the rows' texts it shows the mistakes' alone."""
    provenance = card.provenance
    verdict, report = provenance.verdict, provenance.report
    html = _template().render(
        card=card,
        provenance=provenance,
        place=f"{card.store}/{prompt_prefix(card.task, card.digest)}",
        version=version,
        manifest=card.artifact.manifest,
        tuned=provenance.tuned,
        report=report,
        verdict=verdict,
        columns=columns(report) if report else {},
        selection_bias=selection_bias(card),
        seeds=seed_spread(provenance.tuned),
        measures=verdict.measures if verdict and verdict.measures else report.measures if report else {},
        hints=_hints(card),
        withheld=WITHHELD if card.withheld else None,
        captions={name: _caption(name, card) for name in provenance.plots},
        placed=CAPTIONS,
    )
    return html.encode()


def _caption(name: str, card: Card) -> str:
    """Return what a plot shows, with the names that its numbers stand for, if the machine that drew it may have lacked
    their letters.
    """
    caption, verdict = CAPTIONS.get(name, name), card.provenance.verdict
    parts = [part.name for part in verdict.slices] if verdict else []
    names = {"confusion": list(card.artifact.manifest.labels), "slices": parts}.get(name, [])
    if all(letter < "\u0250" for one in names for letter in one):  # Latin, which every font has
        return caption
    return f"{caption}. Numbers in the plot: {', '.join(f'{place}. {one}' for place, one in enumerate(names, 1))}"


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined  # takes a tenth of a second to import

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "title": title_of,
        "figure": _figure,
        "signed": lambda value: f"{value:+.4f}",
        "short": lambda digest: digest[:12],
        "image": _image,
        "quoted": json.dumps,
    }
    return environment.from_string(files("registry.card").joinpath("page.html").read_text(encoding="utf-8"))


def _hints(card: Card) -> dict[tuple[str, str], list[int]]:
    """Return the virtual tokens, counted from 1, that each sensitive term is near to, by term and category."""
    near_to: dict[tuple[str, str], list[int]] = {}
    for hint in screen(card.provenance.neighbours) if card.provenance.neighbours else []:
        near_to.setdefault((hint.token, hint.category), []).append(hint.virtual_token + 1)
    return near_to


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _image(body: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(body).decode()}"
