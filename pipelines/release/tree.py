"""A tree of lines, as a terminal shows it."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """A thing, what is worth knowing of it, and what hangs below."""

    name: str
    told: str = ""
    below: list["Node"] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(_lines(self, "", ""))


def _lines(node: Node, first: str, rest: str) -> Iterator[str]:
    yield f"{first}{node.name}{'  ' if node.told else ''}{node.told}"
    for number, below in enumerate(node.below, 1):
        last = number == len(node.below)
        yield from _lines(below, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))
