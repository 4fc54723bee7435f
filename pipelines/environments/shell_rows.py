"""Tasks for the shell: files renamed, moved, counted, changed, deleted, or left alone."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.environments.demonstrations import Asked, Called, Simulation, records
from pipelines.environments.shell import WORDS, Shell, world


class _Files:
    """An episode's tree and its dice."""

    def __init__(self, seed: str) -> None:
        self.rng, self.tree = random.Random(f"question {seed}"), world(seed)
        self.texts = [path for path in self.tree if path.endswith(".txt")]

    def pick(self, *forms: str) -> str:
        return self.rng.choice(forms)

    def path(self) -> str:
        return self.rng.choice(self.texts)

    def lines(self, path: str) -> list[str]:
        return (self.tree[path] or "").splitlines()

    def folder(self) -> str:
        return self.rng.choice(sorted(path for path, text in self.tree.items() if text is None))

    def new(self) -> str:
        return f"f{self.rng.randint(10, 999)}.txt"


def generate(count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records of shape messages, as `demonstrations.records` makes them."""
    return records(SIMULATION, count, seed, settings)


def _sh(command: str) -> Called:
    return ("sh", {"command": command})


# --- one function a kind ------------------------------------------------------------------------


def rename(seed: str) -> Asked:
    at = _Files(seed)
    path, new = at.path(), at.new()
    folder = path.partition("/")[0]
    text = at.pick("Rename {} to {}/{}.", "{} should be called {}/{}.").format(path, folder, new)
    return Asked(text, [], [_sh(f"mv {path} {folder}/{new}")])


def count(seed: str) -> Asked:
    at = _Files(seed)
    path, new = at.path(), at.new()
    text = at.pick("Write the number of lines of {} into {}.", "Count the lines of {} into {}.")
    return Asked(text.format(path, new), [], [_sh(f"wc -l < {path} > {new}")])


def matches(seed: str) -> Asked:
    """Lines of all texts of a folder that have a word."""
    at = _Files(seed)
    word, folder, new = at.rng.choice(WORDS), at.folder(), at.new()
    text = at.pick(
        "Write how many lines in {f}/*.txt have {w} into {n}.", "Count lines with {w} in {f}/*.txt into {n}."
    )
    command = f"cat {folder}/*.txt | grep {word} | wc -l > {new}"
    return Asked(text.format(f=folder, w=word, n=new), [], [_sh(command)])


def replace(seed: str) -> Asked:
    at = _Files(seed)
    path = at.path()
    old = at.rng.choice(at.rng.choice(at.lines(path)).split())
    new = at.rng.choice([word for word in WORDS if word != old])
    text = at.pick("Replace {} by {} in {}.", "Every {} becomes {} in {}.")
    return Asked(text.format(old, new, path), [], [_sh(f"sed -i s/{old}/{new}/g {path}")])


def delete(seed: str) -> Asked:
    """All files of a kind, wherever they are."""
    at = _Files(seed)
    word = at.rng.choice(at.rng.choice(at.lines(at.path())).split())
    kind = at.rng.choice(["tmp", "log", "word"])
    if kind == "word":
        text = at.pick("Delete every .txt that has {}.", "Remove all texts with the word {}.").format(word)
        return Asked(text, [], [_sh(f"rm $(grep -l {word} */*.txt)")])
    folder, new = at.folder(), at.new().removesuffix(".txt")
    text = at.pick("Delete all .{k} files and make folder {f}/{n}.", "Make folder {f}/{n}; remove every .{k} file.")
    command = f"find . -name '*.{kind}' -delete; mkdir {folder}/{new}"
    return Asked(text.format(k=kind, f=folder, n=new), [], [_sh(command)])


def collect(seed: str) -> Asked:
    at = _Files(seed)
    first, second = at.rng.sample(at.texts, 2)
    new = at.new()
    text = at.pick("Write the lines of {} and {}, sorted, into {}.", "Sort {} and {} together into {}.")
    return Asked(text.format(first, second, new), [], [_sh(f"sort {first} {second} > {new}")])


def condition(seed: str) -> Asked:
    """A file is deleted if it is long, which is so in two of three."""
    at = _Files(seed)
    path = at.path()
    length, holds = len(at.lines(path)), at.rng.random() < 2 / 3
    least = at.rng.randint(1, length) if holds else length + at.rng.randint(1, 4)
    text = at.pick("If {p} has at least {n} lines, delete it.", "Delete {p} if it has {n} lines or more.")
    goal = [_sh(f"rm {path}")] if holds else []
    return Asked(text.format(p=path, n=least), [_sh(f"wc -l {path}")], goal, "Done." if holds else "No.")


def decline(seed: str) -> Asked:
    """The file isn't there: a look shows it."""
    at = _Files(seed)
    path, new = f"{at.folder()}/{at.new()}", at.new()
    text = at.pick("Rename {p} to {n}.", "Copy {p} to {n}.", "Move {p} to {n}.").format(p=path, n=new)
    return Asked(text, [_sh("ls */")], [], "No.")


KINDS = {
    "rename": rename,
    "count": count,
    "matches": matches,
    "replace": replace,
    "delete": delete,
    "collect": collect,
    "if": condition,
    "decline": decline,
}
SIMULATION = Simulation("shell", Shell, KINDS)
