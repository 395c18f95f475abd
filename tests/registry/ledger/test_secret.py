"""The ledger's secrets: made once at random, the same for all processes, each name its own."""

from concurrent.futures import ThreadPoolExecutor

from registry.ledger.ledger import Ledger
from registry.ledger.secret import CHECKPOINTS, find_secret, take_secret


def test_a_secret_is_made_once_and_stays(ledger: Ledger) -> None:
    assert find_secret(ledger.database, CHECKPOINTS) is None
    secret = take_secret(ledger.database, CHECKPOINTS)
    assert len(secret) == 32
    reopened = Ledger(ledger.url)
    assert take_secret(reopened.database, CHECKPOINTS) == find_secret(reopened.database, CHECKPOINTS) == secret
    reopened.close()


def test_two_names_have_two_secrets(ledger: Ledger) -> None:
    assert take_secret(ledger.database, "one") != take_secret(ledger.database, "two")


def test_all_who_ask_for_a_new_secret_at_once_get_the_same(ledger: Ledger) -> None:
    opened = [Ledger(ledger.url) for _ in range(8)]
    with ThreadPoolExecutor(len(opened)) as pool:
        taken = set(pool.map(lambda own: take_secret(own.database, CHECKPOINTS), opened))
    for own in opened:
        own.close()
    assert taken == {find_secret(ledger.database, CHECKPOINTS)}
