"""Nothing that other people wrote reaches a terminal as more than text: tried on a real one."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli.terminal import PlainFormatter
from tests.flows.cli.pty_reader import watch_terminal

CLI = Path(__file__).parents[3] / "flows" / "cli"
HOSTILE = (
    "\x1b[2J\x1b]0;title\x07 \x1b]8;;https://example.com\x1b\\\\link\x1b]8;;\x1b\\\\ \x9b31m \x85 \x7f \r \x08"
    " \u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069 \u2028 \ud800 \nverdict: passed"
)
FORBIDDEN = [*map(chr, (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x1B), *range(0x1C, 0x20), *range(0x7F, 0xA0)))]
FORBIDDEN += [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028)]


def on_a_terminal(code: str) -> str:
    """What a process with that code writes to its terminal."""
    arguments = ["-c", f"from ast import literal_eval\nhostile = literal_eval({ascii(HOSTILE)!a})\n{code}"]
    return watch_terminal(arguments, os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"})[1]


PRINTS = {
    "a line": "from flows.cli.terminal import say; say(hostile)",
    "an error": (
        "import flows.cli as cli; from ptpipeline.errors import NotFound\n"
        "def fail(*_): raise NotFound(hostile)\ncli.app = fail; cli.main([])"
    ),
    "an unexpected error": (
        "import flows.cli as cli\ndef fail(*_): raise ValueError(hostile)\ncli.app = fail; cli.main([])"
    ),
    "a warning": (
        "import logging, flows.cli as cli\ncli.app = lambda *_: logging.getLogger('x').warning('%s', hostile)\n"
        "cli.main([])"
    ),
    "a table": "from flows.cli.render import print_table; print_table([{hostile: hostile, 'b': [hostile]}], False)",
    "a record": "from flows.cli.render import print_record; print_record({'a': hostile, hostile: None}, False)",
    "nothing": "from flows.cli.render import print_table; print_table([], False, hostile)",
}


@pytest.mark.parametrize("what", PRINTS)
def test_control_characters_are_written_out(what: str) -> None:
    seen = on_a_terminal(PRINTS[what])
    assert "x1b" in seen
    assert [character for character in FORBIDDEN if character in seen] == []
    own = seen.replace("\x1b[1m", "").replace("\x1b[0m", "")  # a table's headings are bold
    assert "\x1b" not in own
    assert not any(line.startswith("verdict") for line in seen.splitlines())


def test_json_stays_exact() -> None:
    seen = on_a_terminal("from flows.cli.render import print_table; print_table([{'a': hostile}], True)")
    assert json.loads(seen) == {"a": HOSTILE}
    assert seen.strip().isascii()


def test_a_log_line_has_the_line_breaks_of_its_error_alone() -> None:
    import logging

    error = ValueError("one\ntwo\x1b")
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", ("a\nb",), (ValueError, error, None))
    assert PlainFormatter().format(record) == "a\\nb\nValueError: one\n  two\\x1b"


def test_no_verb_prints_by_itself() -> None:
    printing = {
        module.name
        for module in CLI.glob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"terminal.py", "render.py"}  # render prints JSON


TELLING = (
    "import logging, sys, flows.cli.terminal as terminal\nterminal.prepare_streams(); terminal.log_plainly()\n"
    "terminal.say('a', sys.stderr); logging.warning('b'); terminal.say('c', sys.stderr); terminal.say('done')"
)


@pytest.mark.parametrize("reader", ["a full disk", "nobody"])
def test_what_nobody_can_be_told_ends_no_work(reader: str) -> None:
    """Else a night would end because of its own log, or with an exit code of Python's own (120)."""
    if reader == "nobody":
        read, written = os.pipe()
        os.close(read)
    else:
        written = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-c", TELLING], stdout=subprocess.PIPE, stderr=written, text=True, check=False
    )
    os.close(written)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed: str) -> None:
    """What a library prints would be written into it."""
    code = (
        "import os, sys, flows.cli.terminal as terminal\nterminal.prepare_streams()\n"
        "sys.exit(not 3 <= os.open('/dev/null', 0) or not all(map(os.get_inheritable, range(3))))"
    )
    done = subprocess.run(["bash", "-c", f'exec {sys.executable} -c "$CODE" {closed}'], env=os.environ | {"CODE": code})
    assert done.returncode == 0
