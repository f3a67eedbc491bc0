"""GorillaFileSystem: a tree of directories and text files with the commands of a shell. Functions act in the current directory."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from .base import Api, require

Node = dict[str, Any]  # {"type": "directory", "contents": {name: Node}} or {"type": "file", "content": text}


class GorillaFileSystem(Api):
    """The tree is state; where one stands in it is not."""

    root: Node

    def __init__(self, config: Mapping[str, Any]) -> None:
        tree = deepcopy(config.get("root", {"workspace": _directory()}))
        self._top, self.root = next(iter(tree.items()))
        self._path: list[str] = []

    def pwd(self) -> dict[str, Any]:
        return {"current_working_directory": "/" + "/".join([self._top, *self._path])}

    def ls(self, a: bool = False) -> dict[str, Any]:
        return {"current_directory_content": [name for name in self._here if a or not name.startswith(".")]}

    def cd(self, folder: str) -> dict[str, Any]:
        if folder == "..":
            require(self._path, "cd: already at the top directory")
            self._path.pop()
        elif folder != ".":
            node = self._here.get(folder)
            require(node is not None and _is_directory(node), f"cd: {folder}: no such directory here")
            self._path.append(folder)
        return {"current_working_directory": self._path[-1] if self._path else self._top}

    def mkdir(self, dir_name: str) -> dict[str, Any]:
        self._make("mkdir", dir_name, _directory())
        return {}

    def touch(self, file_name: str) -> dict[str, Any]:
        self._make("touch", file_name, _file(""))
        return {}

    def echo(self, content: str, file_name: str | None = None) -> dict[str, Any]:
        if file_name in (None, "None"):
            return {"terminal_output": content}
        _plain("echo", str(file_name))
        node = self._here.setdefault(str(file_name), _file(""))
        require(not _is_directory(node), f"echo: {file_name}: is a directory")
        node["content"] = content
        return {"terminal_output": None}

    def cat(self, file_name: str) -> dict[str, Any]:
        return {"file_content": self._read("cat", file_name)}

    def tail(self, file_name: str, lines: int = 10) -> dict[str, Any]:
        require(lines > 0, "tail: lines must be positive")
        return {"last_lines": "\n".join(self._read("tail", file_name).splitlines()[-lines:])}

    def sort(self, file_name: str) -> dict[str, Any]:
        return {"sorted_content": "\n".join(sorted(self._read("sort", file_name).splitlines()))}

    def grep(self, file_name: str, pattern: str) -> dict[str, Any]:
        return {"matching_lines": [line for line in self._read("grep", file_name).splitlines() if pattern in line]}

    def wc(self, file_name: str, mode: str = "l") -> dict[str, Any]:
        text = self._read("wc", file_name)
        counts = {"l": ("lines", len(text.splitlines())), "w": ("words", len(text.split())), "c": ("characters", len(text))}
        require(mode in counts, f"wc: mode is one of l, w, c, not {mode}")
        kind, count = counts[mode]
        return {"count": count, "type": kind}

    def diff(self, file_name1: str, file_name2: str) -> dict[str, Any]:
        one, other = self._read("diff", file_name1).splitlines(), self._read("diff", file_name2).splitlines()
        longest = max(len(one), len(other))
        pairs = zip(one + [""] * (longest - len(one)), other + [""] * (longest - len(other)), strict=True)
        return {"diff_lines": "\n".join(f"- {old}\n+ {new}" for old, new in pairs if old != new)}

    def du(self, human_readable: bool = False) -> dict[str, Any]:
        size = sum(len(node["content"].encode()) for _, node in _walk(self._here, "") if not _is_directory(node))
        return {"disk_usage": _human(size) if human_readable else f"{size} bytes"}

    def find(self, path: str = ".", name: str | None = None) -> dict[str, Any]:
        here = self._here
        for step in [step for step in path.split("/") if step not in ("", ".")]:
            require(step in here and _is_directory(here[step]), f"find: {path}: no such directory")
            here = here[step]["contents"]
        wanted = "" if name in (None, "None") else str(name)
        return {"matches": [place for place, _ in _walk(here, path.rstrip("/") or "/") if wanted in place.rsplit("/", 1)[-1]]}

    def cp(self, source: str, destination: str) -> dict[str, Any]:
        self._place("cp", source, destination, deepcopy(self._node("cp", source)))
        return {"result": f"'{source}' copied to '{destination}'"}

    def mv(self, source: str, destination: str) -> dict[str, Any]:
        node = self._node("mv", source)
        self._place("mv", source, destination, node)
        del self._here[source]
        return {"result": f"'{source}' moved to '{destination}'"}

    def rm(self, file_name: str) -> dict[str, Any]:
        self._node("rm", file_name)
        del self._here[file_name]
        return {"result": f"'{file_name}' removed"}

    def rmdir(self, dir_name: str) -> dict[str, Any]:
        node = self._node("rmdir", dir_name)
        require(_is_directory(node), f"rmdir: {dir_name}: not a directory")
        require(not node["contents"], f"rmdir: {dir_name}: directory not empty")
        del self._here[dir_name]
        return {"result": f"'{dir_name}' removed"}

    @property
    def _here(self) -> dict[str, Node]:
        node = self.root
        for name in self._path:
            node = node["contents"][name]
        return node["contents"]

    def _node(self, command: str, name: str) -> Node:
        require(name in self._here, f"{command}: {name}: no such file or directory")
        return self._here[name]

    def _read(self, command: str, name: str) -> str:
        node = self._node(command, name)
        require(not _is_directory(node), f"{command}: {name}: is a directory")
        return str(node["content"])

    def _make(self, command: str, name: str, node: Node) -> None:
        _plain(command, name)
        require(name not in self._here, f"{command}: {name}: exists already")
        self._here[name] = node

    def _place(self, command: str, source: str, destination: str, node: Node) -> None:
        """Put a node into the directory that the destination names, or under its name."""
        _plain(command, destination)
        target = self._here.get(destination)
        if target is not None and _is_directory(target):
            require(target is not node and destination != source, f"{command}: {source}: cannot go into itself")
            require(source not in target["contents"], f"{command}: {destination} holds {source} already")
            target["contents"][source] = node
            return
        require(target is None, f"{command}: {destination}: exists already")
        self._here[destination] = node


def _directory() -> Node:
    return {"type": "directory", "contents": {}}


def _file(content: str) -> Node:
    return {"type": "file", "content": content}


def _is_directory(node: Node) -> bool:
    return node["type"] == "directory"


def _plain(command: str, name: str) -> None:
    require(name and "/" not in name and name not in (".", ".."), f"{command}: {name}: a plain name of this directory is wanted")


def _walk(contents: Mapping[str, Node], prefix: str) -> Iterator[tuple[str, Node]]:
    for name, node in contents.items():
        place = f"{prefix}/{name}"
        yield place, node
        if _is_directory(node):
            yield from _walk(node["contents"], place)


def _human(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} GB"
