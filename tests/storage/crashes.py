"""A disk that loses power: the system calls of the real code are recorded, and every state is computed that the folder
may be in afterwards.

Of a file, what was written last is lost in part or whole unless it was synced. Of a folder, each name that was made,
moved or removed since it was synced is there or not, whatever happened to the others.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

Node = int
Names = dict[Node, dict[str, Node | None]]  # in each folder
State = dict[str, bytes]  # what is at each path of a folder after a crash


@dataclass
class Disk:
    """What is durable below `root`, and what may be. `lazy`: "files" or "folders" whose syncs are lost."""

    root: Path
    lazy: str = ""
    bodies: dict[Node, bytes] = field(default_factory=dict)  # synced
    written: dict[Node, bytes] = field(default_factory=dict)  # at most this is there
    names: Names = field(default_factory=dict)  # of a folder, synced
    pending: dict[Node, list[tuple[str, Node | None]]] = field(default_factory=dict)

    def note(self, path: Path, node: Node | None) -> None:
        """Note that a name was made (for that node) or removed (None)."""
        self.pending.setdefault(path.parent.stat().st_ino, []).append((path.name, node))

    def sync(self, descriptor: int) -> None:
        """Make durable what the descriptor is open on."""
        path, node = Path(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor).st_ino
        if path.is_dir():
            if self.lazy != "folders":
                self.names.setdefault(node, {}).update(self.pending.pop(node, []))
        elif self.lazy != "files":
            self.bodies[node] = path.read_bytes()

    def link(self, source: Path, target: Path) -> None:
        """Note that the file or folder has that name too."""
        node = source.stat().st_ino
        if source.is_file():
            self.written[node] = source.read_bytes()
        self.note(target, node)

    def states(self) -> Iterator[State]:
        """Yield every state that the folder may be in if the power fails now."""
        root = self.root.stat().st_ino
        choices = [(node, change) for node, changes in self.pending.items() for change in changes]
        for kept in product((False, True), repeat=len(choices)):
            names = {node: dict(entries) for node, entries in self.names.items()}
            for (node, (name, target)), is_kept in zip(choices, kept, strict=True):
                if is_kept:
                    names.setdefault(node, {})[name] = target
            files = dict(self._files(names, root, ""))
            torn = [path for path, node in files.items() if node not in self.bodies]
            for cut in product((0.0, 0.5, 1.0), repeat=len(torn)):
                parts = {
                    path: self.written[files[path]][: int(share * len(self.written[files[path]]))]
                    for path, share in zip(torn, cut, strict=True)
                }
                yield {path: parts.get(path, self.bodies.get(node, b"")) for path, node in files.items()}

    def _files(self, names: Names, folder: Node, prefix: str) -> Iterator[tuple[str, Node]]:
        for name, node in names.get(folder, {}).items():
            if node in names or node in self.pending:
                yield from self._files(names, node, f"{prefix}{name}/")
            elif node is not None and (node in self.bodies or node in self.written):
                yield f"{prefix}{name}", node


def locate(arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """Return the arguments of a system call with the whole paths of those names that lie within an open folder."""
    folders = [options.get("dir_fd", options.get("src_dir_fd")), options.get("dst_dir_fd")]
    within = zip(arguments, [*folders, *[None] * len(arguments)], strict=False)
    return [one if folder is None else Path(os.readlink(f"/proc/self/fd/{folder}"), one) for one, folder in within]


def record(disk: Disk, patch: pytest.MonkeyPatch, look: Callable[[], None]) -> None:
    """Let the disk see the system calls of this process from now on, and call `look` after each of them.

    What happens below `.put/` is not told: no reader looks there.
    """

    def wrap(name: str, tell: Callable[..., None]) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            paths = locate(arguments, options)
            before = tell if name in ("link", "rename", "replace") else None
            if before:
                before(*paths)
            answer = real(*arguments, **options)
            if not before:
                tell(*paths)
            look()
            return answer

        patch.setattr(os, name, call)

    def is_seen(path: Any) -> bool:
        return ".put" not in Path(path).parts and Path(path).is_relative_to(disk.root)

    def move(source: Any, target: Any) -> None:
        disk.link(Path(source), Path(target))
        if is_seen(source):
            disk.note(Path(source), None)

    wrap("fsync", disk.sync)
    wrap("link", lambda source, target: disk.link(Path(source), Path(target)))
    wrap("rename", move)
    wrap("replace", move)
    wrap("unlink", lambda path: disk.note(Path(path), None) if is_seen(path) else None)
    wrap("mkdir", lambda path, *_: disk.note(Path(path), Path(path).stat().st_ino) if is_seen(path) else None)
