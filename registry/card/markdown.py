"""Foreign words within Markdown: shown as they are, in one line, by CommonMark, GitHub's dialect and showdown."""

import re

from ptpipeline.foreign import escape_controls

_SIGNS = re.compile(r"([\\`*_\[\]|#~!])")
_ESCAPED = re.compile(r"\\([\\`*_\[\]|#~!:.])")
_LINKED = re.compile(r"://|(?<=www)\.|(?<=mailto):", re.IGNORECASE)  # addresses that become links by themselves


def escape(text: str) -> str:
    """Return the words so that they make no link, picture, HTML, table or heading: labels are a user's own."""
    line = escape_controls(" ".join(text.split())).replace("&", "&amp;")
    return _LINKED.sub(r"\\\g<0>", _SIGNS.sub(r"\\\1", line).replace("<", "&lt;"))


def unescape(markdown: str) -> str:
    """Return the words that `escape` was given, in one line."""
    return _ESCAPED.sub(r"\1", markdown.replace("&lt;", "<").replace("&amp;", "&"))


def quote(text: str) -> str:
    """Return the words as a span of code, in which nothing else has a meaning."""
    return f"`{escape_controls(' '.join(text.split())).replace('`', chr(39))}`"
