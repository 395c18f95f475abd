"""Texts whose UTF-8 was once read as another encoding and written as UTF-8 again, so that `é` stands there as `Ã©`.

One text proves nothing: `CAFÉ®` is UTF-8 too, if its letters are taken for bytes. But in a language that needs such
letters hardly any text passes for UTF-8 from its first to its last of them. So it is told only if most texts of a
column do, or several that hold what nobody writes, such as `â€™`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

FEWEST = 3  # different letters, or texts, that make it sure; one letter less if there is no other text

_ENCODINGS = {"Windows-1252": "cp1252", "Windows-1251": "cp1251"}
# The character that stands for each byte; those that the encoding does not have stand for themselves, as in browsers.
_BYTES = {
    name: {bytes([byte]).decode(codec, errors="ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
    for name, codec in _ENCODINGS.items()
}
_TABLES = {name: {ord(character): byte for character, byte in found.items()} for name, found in _BYTES.items()}
_BEGINS = {
    name: re.compile(
        "[{}][\x80-\x9f{}]".format(  # C1 stands there if the bytes were taken for Latin-1
            *(
                re.escape("".join(character for character, byte in found.items() if byte in bytes_))
                for bytes_ in (range(0xC2, 0xF5), range(0x80, 0xC0))
            )
        )
    )
    for name, found in _BYTES.items()
}
_LETTERS = re.compile("[\u00a1-\u017f\u0391-\u044f\u0800-\U0010ffff]")  # Latin, Greek, Cyrillic, East Asian...
_NEVER = re.compile("[\u2010-\u203a\u20ac\u2122\U0001f300-\U0001faff]")  # of `â€”`, `ðŸ...`


class Reencoded(NamedTuple):
    """The indexes of such texts, as what their bytes were read, and whether all texts with such letters are so."""

    texts: list[int]
    encoding: str
    whole: bool


def find_reencoded(texts: Sequence[str]) -> Reencoded | None:
    """Return the texts of a column that were encoded twice; None if that is not sure."""
    letters = [index for index, text in enumerate(texts) if not text.isascii()]
    for encoding in _ENCODINGS:
        undone = {index: right for index in letters if (right := _undo(texts[index], encoding)) is not None}
        different = {letter for right in undone.values() for letter in _LETTERS.findall(right)}
        whole = len(undone) == len(letters)
        if len(different) >= FEWEST - whole and len(undone) * 2 > len(letters):
            return Reencoded(list(undone), encoding, whole)
        sure = [index for index, right in undone.items() if _NEVER.search(right)]
        if len(sure) >= FEWEST:
            return Reencoded(sure, encoding, False)
    return None


def describe_reencoded(found: Reencoded) -> str:
    """Return what these texts are, and what to do if the file is one of text."""
    letter = "é" if found.encoding == "Windows-1252" else "и"
    wrong = letter.encode().decode(_ENCODINGS[found.encoding])
    fix = f"; undo it in a file of text by: {_UNDO.format(_ENCODINGS[found.encoding])}" if found.whole else ""
    return (
        f"read like UTF-8 that was taken for {found.encoding} and written as UTF-8 again, with {wrong!r} for {letter!r}"
        f"{fix or '; correct them in the source'}"
    )


_UNDO = (
    'python -c \'import sys; back = {{ord(bytes([n]).decode("{0}", "ignore") or chr(n)): n for n in range(128, 256)}}; '
    'sys.stdout.buffer.write(open(sys.argv[1], encoding="utf-8-sig", newline="").read().translate(back)'
    '.encode("latin-1"))\' FILE > NEW'
)


def _undo(text: str, encoding: str) -> str | None:
    if _BEGINS[encoding].search(text) is None:
        return None
    try:
        return text.translate(_TABLES[encoding]).encode("latin-1").decode()
    except UnicodeError:
        return None
