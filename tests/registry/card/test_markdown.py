"""Other people's words within Markdown make no link, picture, HTML, table or heading, in two renderers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ptpipeline.foreign import escape_controls
from registry.card.markdown import escape, quote, unescape

HOSTILE = [
    "![x](https://example.com/pixel.png)",
    "[click](javascript:alert(1))",
    "[click][1]\n\n[1]: https://example.com",
    "<img src=https://example.com/x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "&lt;b&gt; &#60;script&#62;",
    "https://example.com www.example.com mailto:a@example.com",
    "<https://example.com>",
    "a | b | c\n--|--|--\n1 | 2 | 3",
    "# title",
    "`code` ``more``",
    "**bold** _slanted_ ~~gone~~",
    "\\`a\\`",
    "\x1b[31mred \u202e reversed",
    "- a\n- b\n\n> c",
]


@pytest.mark.parametrize("words", HOSTILE)
@pytest.mark.parametrize("dialect", ["commonmark", "gfm-like"])
def test_words_are_one_paragraph_of_text(words: str, dialect: str) -> None:
    parser = MarkdownIt(dialect) if dialect == "commonmark" else MarkdownIt("commonmark").enable(["table"])
    before, after = parser.render("checked: x, required y"), parser.render(f"checked: {escape(words)}, required y")
    assert after.count("<") == before.count("<")
    assert after.replace("&gt;", "").count(">") == before.count(">")
    assert "\n" not in escape(words)


@pytest.mark.parametrize("words", HOSTILE)
def test_quoted_words_are_one_span_of_code(words: str) -> None:
    shown = MarkdownIt("commonmark").render(f"on {quote(words)}.")
    assert (shown.count("<"), shown.count("<code>"), shown.count("</code>")) == (4, 1, 1)


@given(st.text() | st.text("\\`*_[]|#~!:/.<&;ltamp w"))
def test_escapes_are_taken_back(words: str) -> None:
    assert unescape(escape(words)) == escape_controls(" ".join(words.split()))


def test_plain_words_stay_as_they_are() -> None:
    assert escape("accuracy 0.9 (+0.1), at least 80%: good") == "accuracy 0.9 (+0.1), at least 80%: good"
