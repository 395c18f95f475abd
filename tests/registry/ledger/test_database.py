"""How long a right lasts, and that the fences of a thread are its own."""

import pytest

from ptpipeline.errors import Overtaken
from registry.ledger.database import Database, seconds_left
from registry.registry import Registry


@pytest.mark.parametrize(
    ("expires", "left"),
    [
        (99.0, 0.0),  # it ended
        (100.0, 0.0),  # it ends now
        (100.5, 0.5),
        (130.0, 30.0),  # as long as it can last
        (130.5, 0.0),  # longer than it can last: the clock was set back since
    ],
)
def test_a_right_lasts_until_its_end_and_never_longer_than_it_can(expires: float, left: float) -> None:
    assert seconds_left(expires, now=100.0, longest=30.0) == left


def test_a_fence_ends_writes_of_its_own_database_while_it_stands(plain: Registry) -> None:
    def fall(_connection: object) -> None:
        raise Overtaken("another run took over")

    database, other = plain.ledger.database, Database(f"{plain.ledger.url}-other")
    with database.fenced(fall):
        with pytest.raises(Overtaken):
            database.check_fences()
        other.check_fences()
        plain.ledger.tasks()  # who reads is not asked
    database.check_fences()
    other.close()
