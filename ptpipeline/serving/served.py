"""What a name stands for on this server, and which of two versions answers a request."""

import hashlib
import os
from typing import NamedTuple

from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.serving import Refused
from ptpipeline.records.versions import Promotion
from ptpipeline.serving.holdings import SHA, Held


class Split(NamedTuple):
    """The versions that share the requests of an alias: its own, and the canary."""

    version: int
    canary: int


class Served(NamedTuple):
    """The version that answers a request. `number` is None if only its digest is known.

    alias: what the request named, and `seq` the promotion that it answers by; empty and 0 if it named a number or a
    digest. shadow: another version that is asked too, and whose answer is only compared. split: the versions of which
    this is the one that was drawn, if the alias has a canary. labels: those of two versions that stand beside each
    other, one of which feedback names; empty if one of the two answers with a text.
    """

    task: str
    number: int | None
    digest: str
    alias: str
    manifest: PromptManifest
    seq: int = 0
    shadow: "Served | None" = None
    split: Split | None = None
    labels: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """`task@number`, as answers cite it, or `task@sha256:digest`."""
        return f"{self.task}@{SHA + self.digest if self.number is None else self.number}"

    @classmethod
    def of(cls, held: Held, alias: str = "", seq: int = 0) -> "Served":
        """Return what answers a request that named the alias, or none."""
        return cls(held.manifest.task, held.number, held.digest, alias, held.manifest, seq)


def put_beside(first: Served, second: Served, promotion: Promotion) -> tuple[Served, Served]:
    """Return both versions of a promotion as they answer: the one with its shadow, or each with the other's number."""
    of_first, of_second = first.manifest.labels, second.manifest.labels
    labels = frozenset([*of_first, *of_second] if of_first and of_second else [])
    if promotion.beside is None or promotion.beside.is_shadow:
        return first._replace(shadow=second, labels=labels), second
    split = Split(promotion.version, promotion.beside.version)
    return first._replace(split=split, labels=labels), second._replace(split=split, labels=labels)


class Alias(NamedTuple):
    """What an alias answers by; `second` is the version beside it, `before` what it named last, for a rollback."""

    promotion: Promotion
    etag: str
    first: Served
    second: Served | None
    before: frozenset[str]

    @property
    def named(self) -> frozenset[str]:
        return frozenset([self.first.digest, *([self.second.digest] if self.second else [])])

    def choose(self, key: str) -> Served:
        """Return the version for a request. A key stays with its version while the second one's share grows."""
        beside = self.promotion.beside
        if self.second is None or beside is None or beside.is_shadow:
            return self.first
        return self.second if draw(beside.digest, key) < beside.percent else self.first


class State(NamedTuple):
    """What this server observes: the promotion that each alias answers by, what it refuses, how many prompts it holds.

    away: seconds since the store was last reached; None if it never was. trouble: why it cannot be reached now, or "".
    """

    promotions: list[Promotion]
    refused: list[Refused]
    held: int
    away: float | None
    trouble: str


def draw(salt: str, key: str) -> float:
    """Return a number from 0 to 100 that is the same for each use of a key; another one each time without a key."""
    digits = hashlib.sha256(f"{salt} {key}".encode()).digest() if key else os.urandom(8)
    return int.from_bytes(digits[:8]) / 2**64 * 100
