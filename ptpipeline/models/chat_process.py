"""The process that runs a chat template: reads it as JSON, writes the chat; `chat.py` starts it.

It ends with code 1, and the reason, if the template refuses the messages. It has no clock: what a template writes today
it has to write tomorrow, or equal keys would stand for other prompts.
"""

import json
import resource
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

_NO_CLOCK = "{% set strftime_now = clock %}"  # which is not defined


def main() -> None:
    """Run the template of standard input within these bounds: seconds, bytes of memory, bytes of text."""
    seconds, memory, most = map(int, sys.argv[1:])
    asked = json.loads(sys.stdin.buffer.read())
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, spent + seconds))
    if pages is not None:
        size = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    try:
        (written,), _ = render_jinja_template(
            [asked["messages"]],
            chat_template=_NO_CLOCK + asked["template"],
            add_generation_prompt=True,
            **asked["tokens"],
        )
    except MemoryError:
        sys.exit(2)
    except Exception as error:  # noqa: BLE001 - a chat template is foreign code and raises what it likes
        sys.stdout.write(f"{type(error).__name__}: {error}"[:1000])
        sys.exit(1)
    body = written.encode(errors="replace")
    if len(body) > most:
        sys.exit(2)
    sys.stdout.buffer.write(body)


if __name__ == "__main__":
    main()
