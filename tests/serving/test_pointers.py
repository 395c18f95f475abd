"""Between two looks at all pointers a server asks for one object alone, which every promotion changes."""

from collections.abc import Collection
from pathlib import Path

import pytest

from ptpipeline.errors import ServiceUnavailable, SettingsError
from ptpipeline.serving.pointers import DISCOVER, Pointers
from ptpipeline.serving.refusals import Place
from ptpipeline.storage import FolderStore, Stored
from ptpipeline.storage.bounds import MIB
from ptpipeline.storage.keys import MOVED_KEY, pointer_key
from registry.versions.projection import tell_servers
from tests.serving.registered import Clock, put

PLACES = [Place("books", "production"), Place("movies", "production"), Place("movies", "staging")]


class Asked(FolderStore):
    """A store that notes what is read from it, and may answer nothing about one key."""

    away = ""
    withheld: Collection[str] = ()

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.keys_read: list[str] = []

    def read(self, key: str) -> Stored:
        self.keys_read.append(key)
        if key in self.withheld:
            raise SettingsError("this identity may not read it")
        if key == self.away:
            raise ServiceUnavailable(f"{self.url} does not answer")
        return super().read(key)


class Server:
    """What a server holds of the pointers, as it takes over all that it sees."""

    def __init__(self, store: Asked) -> None:
        self.store, self.clock, self.held = store, Clock(), dict[Place, str]()
        self.pointers = Pointers(store, (), self.clock)

    def look(self, *, refuses: Place | None = None) -> set[Place]:
        """Look once, and take over what is seen; returns the pointers that were told."""
        self.pointers.discover()
        self.store.keys_read.clear()
        seen = self.pointers.look(self.held)
        self.held |= {place: tag for place, tag in seen.items() if tag is not None and place != refuses}
        assert self.store.keys_read.count(MOVED_KEY) == 1
        return set(seen)


@pytest.fixture
def store(tmp_path: Path) -> Asked:
    store = Asked(tmp_path / "store")
    for place in PLACES:
        store.create(pointer_key(*place), b"1")
    return store


@pytest.fixture
def server(store: Asked) -> Server:
    """A server that has seen all pointers, the last of which a writer announced."""
    tell_servers(store)
    server = Server(store)
    assert server.look() == set(PLACES)
    return server


def test_while_no_pointer_moves_none_is_asked_for(server: Server) -> None:
    assert [server.look() for _ in range(3)] == [set()] * 3


def test_all_pointers_are_asked_for_after_one_moved(server: Server, store: Asked) -> None:
    put(store, pointer_key(*PLACES[1]), b"2")
    tell_servers(store)
    assert (server.look(), server.look()) == (set(PLACES), set())
    assert server.held[PLACES[1]] == store.read(pointer_key(*PLACES[1])).etag


def test_a_pointer_whose_writer_died_before_it_told_is_seen_within_a_minute(server: Server, store: Asked) -> None:
    put(store, pointer_key(*PLACES[1]), b"2")
    server.clock.now += DISCOVER - 1
    assert server.look() == set()
    server.clock.now += 1
    assert server.look() == set(PLACES)


def test_a_pointer_that_is_not_taken_over_is_told_at_each_look(server: Server, store: Asked) -> None:
    put(store, pointer_key(*PLACES[1]), b"2")
    tell_servers(store)
    assert server.look(refuses=PLACES[1]) == set(PLACES)
    assert server.look(refuses=PLACES[1]) == {PLACES[1]}
    assert (server.look(), server.look()) == ({PLACES[1]}, set())


def test_a_pointer_that_was_never_taken_over_is_told_at_each_look_and_not_asked_for(store: Asked) -> None:
    """Whoever plants thousands of bad pointers makes a server no slower for the others."""
    tell_servers(store)
    server = Server(store)
    assert server.look(refuses=PLACES[1]) == set(PLACES)
    assert server.look(refuses=PLACES[1]) == {PLACES[1]}
    assert store.keys_read == [MOVED_KEY]
    assert server.look() == {PLACES[1]}


def test_an_alias_whose_tag_is_not_known_yet_is_told(server: Server) -> None:
    server.held[PLACES[0]] = ""  # as after a request read it
    assert (server.look(), server.look()) == ({PLACES[0]}, set())


def test_without_a_writer_that_tells_all_pointers_are_asked_for_at_each_look(store: Asked) -> None:
    server = Server(store)
    assert [server.look() for _ in range(2)] == [set(PLACES)] * 2


def test_if_what_writers_tell_by_cannot_be_read_all_pointers_are_asked_for_at_each_look(
    server: Server, store: Asked
) -> None:
    (store.root / MOVED_KEY).write_bytes(b"0" * (MIB + 1))
    assert [server.look() for _ in range(2)] == [set(PLACES)] * 2
    tell_servers(store)
    assert [server.look() for _ in range(2)] == [set(PLACES), set()]


def test_a_pointer_that_is_withheld_alone_is_asked_for_at_each_look(server: Server, store: Asked) -> None:
    store.withheld = {pointer_key(*PLACES[1])}
    tell_servers(store)
    assert [server.look(refuses=PLACES[1]) for _ in range(3)] == [set(PLACES), {PLACES[1]}, {PLACES[1]}]


def test_if_what_writers_tell_by_is_withheld_alone_all_pointers_are_asked_for(server: Server, store: Asked) -> None:
    store.withheld = {MOVED_KEY}
    assert [server.look() for _ in range(2)] == [set(PLACES)] * 2


def test_a_server_that_may_read_nothing_is_told(server: Server, store: Asked) -> None:
    store.withheld = {MOVED_KEY, *(pointer_key(*place) for place in PLACES)}
    with pytest.raises(SettingsError, match="may not read it"):
        server.look()


def test_a_look_that_the_store_ended_is_made_again(server: Server, store: Asked) -> None:
    put(store, pointer_key(*PLACES[1]), b"2")
    tell_servers(store)
    store.away = pointer_key(*PLACES[2])
    with pytest.raises(ServiceUnavailable):
        server.look()
    store.away = ""
    assert server.look() == set(PLACES)


def test_two_writers_at_once_both_tell(store: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    tell_servers(store)
    read = store.read

    def read_late(key: str) -> Stored:
        stored = read(key)
        monkeypatch.undo()
        tell_servers(store)  # the other one, between our read and our write
        return stored

    before = store.read(MOVED_KEY).etag
    monkeypatch.setattr(store, "read", read_late)
    tell_servers(store)
    assert store.read(MOVED_KEY).etag != before
