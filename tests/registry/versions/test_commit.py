"""What is signed before the ledger holds it, and taken back if the ledger does not take it."""

from dataclasses import replace

import pytest

from ptpipeline.errors import PromotionConflict
from ptpipeline.records.versions import Promotion
from ptpipeline.storage.keys import history_key, signatures_prefix
from registry.ledger.ledger import Ledger, Move, Release
from registry.registry import Registry
from registry.versions.commit import commit
from tests.registry.signed import TASK


class Overtaken(Ledger):
    """A ledger in which a rival moves the canary once its row is drafted."""

    def draft(self, move: Move) -> Promotion:
        row = super().draft(move)
        if move.alias == "canary":
            self.append(move.model_copy(update={"actor": "rival"}))
        return row


@pytest.mark.parametrize("together", [True, False])
def test_none_of_several_moves_that_lost_leaves_a_signature(keyed: Registry, together: bool) -> None:
    release = Release(name="autumn", actor="me", reason="why", versions={TASK.name: 1}, at="2026-01-01")
    moves = [
        Move(task=TASK.name, alias=alias, version=1, actor="late", reason="why", expected=expected)
        for alias, expected in (("canary", 0), ("production", 3))
    ]
    with pytest.raises(PromotionConflict):
        commit(replace(keyed, ledger=Overtaken(keyed.ledger.url)), moves, release if together else None)
    for alias, seq in (("canary", 1), ("production", 4)):
        assert [*keyed.store.keys(signatures_prefix(history_key(TASK.name, alias, seq)))] == []
    assert [row.seq for row in keyed.ledger.history(TASK.name, "production")] == [1, 2, 3]
