"""One page of HTML per version: all that is known of it, in a file that opens without a server and loads nothing from
elsewhere.
"""

import base64
import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from ptpipeline.prompts.sensitive import screen
from ptpipeline.records import PromptVersion, title_of
from registry.card.card import Entry, columns, curse, seeds

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


def page(entry: Entry, version: PromptVersion | None = None) -> bytes:
    """The page as UTF-8; the same of the same records. It holds no row's text but those of `entry.mistakes`."""
    verdict, report = entry.verdict, entry.report
    found = _template().render(
        entry=entry,
        version=version,
        manifest=entry.artifact.manifest,
        tuned=entry.tuned,
        report=report,
        verdict=verdict,
        columns=columns(report) if report else {},
        curse=curse(entry),
        seeds=seeds(entry.tuned),
        measures=verdict.measures if verdict and verdict.measures else report.measures if report else {},
        hints=_hints(entry),
        captions={name: CAPTIONS.get(name, name) for name in entry.plots},
        placed=CAPTIONS,
    )
    return found.encode()


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


def _hints(entry: Entry) -> dict[tuple[str, str], list[int]]:
    """Sensitive terms with their category, and the virtual tokens that they are near to, from 1."""
    found: dict[tuple[str, str], list[int]] = {}
    for hint in screen(entry.neighbours) if entry.neighbours else []:
        found.setdefault((hint.token, hint.category), []).append(hint.virtual_token + 1)
    return found


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _image(body: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(body).decode()}"
