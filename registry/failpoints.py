"""The named steps of publishing, promoting, projecting, collecting and starting servers, for a test to stop at.

A watcher is called in the process that reached the step, before that process continues.
"""

from collections.abc import Callable

_watching: list[Callable[[str], None]] = []


def reached(step: str) -> None:
    """Tell the watchers that this process has reached the step."""
    for watcher in _watching:
        watcher(step)


def watch(watcher: Callable[[str], None]) -> None:
    """Call `watcher` with the name of every step that this process reaches from now on."""
    _watching.append(watcher)
