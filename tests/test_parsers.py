"""Whatever bytes come: a parser ends in a value or in an error of ours, within two seconds and 256 MB.

Each run tries other bytes; `make soak` searches longer, and by what it covers (tests/soak/test_fuzz.py).
"""

import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptpipeline.errors import PtpError
from tests.parsers import PARSERS, TOKENS

SECONDS, BYTES = 2.0, 256 * 2**20

edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 40),
        st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8)),
    ),
    max_size=4,
)


def edited(sound: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """The bytes with some of them replaced at these places, which are shares of the length."""
    for place, removed, put in changes:
        at = int(place * len(sound))
        sound = sound[:at] + put + sound[at + removed :]
    return sound


@pytest.mark.parametrize("name", PARSERS)
def test_sound_bytes_are_taken(name: str) -> None:
    PARSERS[name].parse(PARSERS[name].sound)


def check_promise(parse: Callable[[bytes], object], raw: bytes) -> None:
    """Fail unless the bytes end in a value or an error of ours in time and memory: what Python and numpy allocate
    for them; what libraries allocate themselves is bounded in `make soak`.
    """
    tracemalloc.start()
    began = time.process_time()
    try:
        parse(raw)
    except PtpError as error:
        assert len(str(error)) < 2000  # noqa: PT017
    finally:
        seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (seconds < SECONDS, peak < BYTES) == (True, True), f"{seconds:.1f} s, {peak} bytes"


@pytest.mark.parametrize("name", PARSERS)
def test_any_bytes_end_in_a_value_or_an_error_of_ours(name: str) -> None:
    parser = PARSERS[name]

    @settings(max_examples=1000, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(edits.map(lambda changes: edited(parser.sound, changes)), st.binary(max_size=200)))
    def hold(raw: bytes) -> None:
        check_promise(parser.parse, raw)

    hold()


def test_a_parser_that_takes_too_much_memory_is_noticed() -> None:
    bytearray(BYTES + 1)  # the process held as much before
    with pytest.raises(AssertionError, match="bytes"):
        check_promise(lambda _: bytearray(BYTES + 1), b"")
