"""Other people's words in a run's table: no markup there, and as they were for who reads the table."""

from flows.table import escape_words, unescape_words

ROW = {"task": "movies", "status": "failed", "reason": "row 3: `![x](https://example.org)`", "plan": None, "delta": 0.1}


def test_words_that_may_be_anybodys_are_no_markup() -> None:
    assert escape_words(ROW) == ROW | {"reason": "row 3: \\`\\!\\[x\\](https\\://example.org)\\`"}


def test_who_reads_the_table_gets_the_words_back() -> None:
    assert unescape_words(escape_words(ROW)) == ROW
