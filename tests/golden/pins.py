"""Pinned values in files, and how what is found is compared with them."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")
NONCE = re.compile(r'(?<="nonce": ")[0-9a-f]{32}')
CHECK = re.compile(r'(?<="sha256": ")[0-9a-f]{64}')  # of a server's report, over a time
CHAIN = re.compile(r'(?<="chain": ")[0-9a-f]{64}')  # over a row with its time
SAID = "(words)"


def pinned(name: str) -> Any:
    """The value of `pins/<name>` or `answers/<name>`; text if it is no JSON file."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else text


def masked(text: str) -> str:
    """The text without what is new each time: times, nonces, and digests over these."""
    return CHAIN.sub("CHAIN", CHECK.sub("CHECK", NONCE.sub("NONCE", TIME.sub("TIME", text))))


def without_words(value: Any, fields: Collection[str]) -> Any:
    """The value with the sentences in those fields left out: what they say may change, that they say something
    may not.
    """
    if isinstance(value, dict):
        return {name: SAID if name in fields and item else without_words(item, fields) for name, item in value.items()}
    return [without_words(item, fields) for item in value] if isinstance(value, list) else value


def assert_same(found: Any, expected: Any, tolerance: float = 1e-6, place: str = "") -> None:
    """All fields and values alike, floats within the tolerance; says where they differ first."""
    if isinstance(expected, dict) and isinstance(found, dict):
        assert found.keys() == expected.keys(), (
            f"{place}: missing {sorted(expected.keys() - found.keys())}, new {sorted(found.keys() - expected.keys())}"
        )
        for name, value in expected.items():
            assert_same(found[name], value, tolerance, f"{place}.{name}")
    elif isinstance(expected, list) and isinstance(found, list):
        assert len(found) == len(expected), f"{place}: {found} instead of {expected}"
        for number, value in enumerate(expected):
            assert_same(found[number], value, tolerance, f"{place}[{number}]")
    elif isinstance(expected, float) and isinstance(found, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), place
    else:
        assert (found, type(found)) == (expected, type(expected)), place
