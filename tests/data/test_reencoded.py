"""Texts that were encoded twice are told; texts that only look like it are not."""

import subprocess
import sys
from pathlib import Path

import pytest

from ptpipeline.data.reencoded import describe_reencoded, find_reencoded
from tests.data.tables import load, pairs

FRENCH = ["déjà vu", "une scène très drôle", "le cœur", "plain", "ça va", "voilà\u00a0»", "naïve"]
RUSSIAN = ["хороший фильм", "очень скучно", "конец»", "plain"]
KOREAN = ["좋은 영화", "지루했다", "plain", "“최고”"]
QUOTES = ["it’s good", "“fine”", "a film — long", "plain"]


def encode_twice(texts: list[str], codec: str) -> list[str]:
    """As a browser takes bytes for characters: those that the encoding lacks stand for themselves."""
    return ["".join(bytes([byte]).decode(codec, "ignore") or chr(byte) for byte in text.encode()) for text in texts]


@pytest.mark.parametrize(
    ("texts", "codec", "encoding"),
    [
        (FRENCH, "cp1252", "Windows-1252"),
        (["é", "ö"], "cp1252", "Windows-1252"),
        (RUSSIAN, "cp1252", "Windows-1252"),
        (RUSSIAN, "cp1251", "Windows-1251"),
        (KOREAN, "cp1252", "Windows-1252"),
        (QUOTES, "cp1252", "Windows-1252"),
        (QUOTES, "latin-1", "Windows-1252"),
    ],
)
def test_texts_that_were_encoded_twice_are_found(texts: list[str], codec: str, encoding: str) -> None:
    found = find_reencoded(encode_twice(texts, codec))
    assert found is not None
    assert (found.encoding, found.whole) == (encoding, True)
    assert found.texts == [index for index, text in enumerate(texts) if not text.isascii()]


@pytest.mark.parametrize(
    "texts",
    [
        FRENCH,
        RUSSIAN,
        KOREAN,
        QUOTES,
        ["NESTLÉ®", "NESCAFÉ®", "CAFÉ™", "CAFÉ…"],  # each would be UTF-8, but of letters that nobody writes
        ["Why is ’ shown as â€™ here?", "plain"],
        ["AMANHÃ»", *FRENCH],
        ["AMANHÃ»", "MANHÃ»"],
        ["caf\udce9"] * 9,
        [],
    ],
)
def test_honest_texts_are_not(texts: list[str]) -> None:
    assert find_reencoded(texts) is None


def test_a_few_among_honest_ones_are_found_by_what_nobody_writes() -> None:
    found = find_reencoded([*FRENCH * 9, *encode_twice(QUOTES, "cp1252")])
    assert found is not None
    assert (found.texts, found.whole) == ([63, 64, 65], False)
    assert describe_reencoded(found).endswith("with 'Ã©' for 'é'; correct them in the source")


@pytest.mark.parametrize(("texts", "codec"), [(FRENCH + QUOTES, "cp1252"), (RUSSIAN, "cp1251")])
def test_the_command_that_is_told_undoes_it(tmp_path: Path, texts: list[str], codec: str) -> None:
    body = "text,label\r\n" + "".join(f"{text},bad\r\n" for text in texts)
    (wrong,) = encode_twice([body], codec)
    (tmp_path / "FILE").write_text(wrong, encoding="utf-8", newline="")
    found = find_reencoded([text for text, _ in pairs(load(tmp_path, wrong)) if text])
    assert found is not None
    command = describe_reencoded(found).rpartition(" by: ")[2].replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "NEW").read_bytes() == body.encode()
