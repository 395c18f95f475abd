"""Templates of named fields, and what a row makes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.errors import DataError
from ptpipeline.task.template import parse_template

PAIR = "{premise}\nClaim: {hypothesis}\nAnswer:"


@given(st.text(), st.text())
def test_fields_are_taken_literally(one: str, other: str) -> None:
    rendered = parse_template("Say {{it}}: {premise}|{hypothesis}:").render(
        {"hypothesis": other, "premise": one}, "row"
    )
    assert rendered == "Say {it}: " + one + "|" + other + ":"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{text.__class__}", "plain name in braces"),
        ("{text[0]}", "plain name in braces"),
        ("{text!r}", "not {text!r}"),
        ("{text:>99999999999}", "plain name in braces"),
        ("{0}", "plain name in braces"),
        ("{}", "plain name in braces"),
        ("{a b}", "plain name in braces"),
        ("none", "at least one field"),
        ("{{text}}", "at least one field"),
        ("{text", "literal brace"),
        ("{a} and {b} and {a}", r"\{a\} stands twice"),
    ],
)
def test_anything_but_plain_fields_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_template(template)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"premise": "a"}, "the field 'hypothesis' is missing; the template has the fields hypothesis and premise"),
        ({"premise": "a", "hypothesis": "b", "other": "c"}, "the field 'other' is unknown"),
        ({"premise": "a", "hypothesis": None}, "the field 'hypothesis' is NoneType; expected text"),
    ],
)
def test_a_row_of_other_fields_is_refused_in_a_sentence(fields: dict[str, str], fault: str) -> None:
    with pytest.raises(DataError, match=f"row 3: {fault}"):
        parse_template(PAIR).render(fields, "row 3")
