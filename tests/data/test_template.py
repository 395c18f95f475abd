"""Rendering a template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.data.template import render
from ptpipeline.errors import DataError


@given(st.text())
def test_the_text_is_taken_literally(text: str) -> None:
    assert render("Say {{it}}: {text}\nSentiment:", text) == "Say {it}: " + text + "\nSentiment:"


@pytest.mark.parametrize(
    "template", ["{text.__class__}", "{text[0]}", "{text!r}", "{text:>99999999999}", "{other}", "{0}", "none", "{text"]
)
def test_anything_but_one_plain_field_is_refused(template: str) -> None:
    with pytest.raises(DataError, match="template"):
        render(template, "a")
