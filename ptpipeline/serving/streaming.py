"""A generated text, piece by piece as its tokens come: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what a tokenizer writes for bytes that are no character, or not a whole one yet


class Trim:
    """Gives out a text that comes in pieces, without the white space at its ends."""

    def __init__(self) -> None:
        self.pending = ""  # what came and was not given out
        self._begun = False

    def give(self, count: int) -> str:
        """Give out the first `count` pending characters, but white space at their end: the text may end there."""
        piece = self.pending[:count].rstrip()
        self.pending = self.pending[len(piece) :]
        if not self._begun:
            piece = piece.lstrip()
            self._begun = bool(piece)
        return piece

    def push(self, text: str) -> str:
        """Add a piece, and give out all that may be."""
        self.pending += text
        return self.give(len(self.pending))


class TextStream:
    """Turns a row's tokens into the pieces of its text, without white space at the text's ends.

    The text ends where a stop string is complete first, whichever tokens it came in; if several are complete at once,
    the longest of them.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [string for string in stop if string]
        self._window: list[int] = []  # tokens of the last piece of characters, and those behind it
        self._seen = ""  # what the window's tokens say of characters that were read
        self._unread = 0  # tokens of the window behind them
        self._trim = Trim()  # has the characters that were read and not given out
        self.stopped = False

    def push(self, token: int) -> str:
        """Return what one more token adds to the text; then `stopped` says whether a stop string ended it."""
        self._trim.pending += self._read(token)
        end = self._find_stop()
        if end is not None:
            self.stopped, self._trim.pending = True, self._trim.pending[:end]
            return self.close()
        return self._trim.give(len(self._trim.pending) - self._count_held())

    def close(self) -> str:
        """Return what is left when the text ends; bytes that never became a character are left out."""
        rest = self._trim.give(len(self._trim.pending))
        self._trim.pending = ""
        return rest

    def _read(self, token: int) -> str:
        """Return the characters that a token completes.

        A token is decoded behind those of the piece before it, since some tokenizers drop the space before a first one.
        """
        self._window.append(token)
        self._unread += 1
        text = self._decode(self._window)
        new = text[len(self._seen) :]
        if not new or new.endswith(UNFINISHED):
            return ""
        self._window = self._window[-self._unread :]
        self._seen, self._unread = self._decode(self._window), 0
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _find_stop(self) -> int | None:
        """Return where the stop string begins that is complete first; None if none is."""
        pending = self._trim.pending
        found = [(start + len(string), start) for string in self._stop if (start := pending.find(string)) >= 0]
        return min(found)[1] if found else None

    def _count_held(self) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest, pending = max(map(len, self._stop), default=1) - 1, self._trim.pending
        for count in range(min(longest, len(pending)), 0, -1):
            if any(string.startswith(pending[-count:]) for string in self._stop):
                return count
        return 0
