"""The code that a version carries: the modules that serving imports, found in the sources, and nothing else."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "pipelines"


def carry(root: Path, entry: str, folder: Path) -> None:
    """Copies what module `entry` imports of our package, whenever it does, into `folder`/pipelines.

    `root` is the folder that holds the package. The entry itself is left out: a version has it beside its code.
    """
    for path in modules(root, entry):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def modules(root: Path, entry: str) -> list[Path]:
    """The files of our package that `entry` comes to import, without its own."""
    waiting, found = [entry], set[Path]()
    while waiting:
        path = _file(root, waiting.pop())
        if path is not None and path not in found:
            found.add(path)
            waiting += [part for name in imported(path) if name.split(".")[0] == PACKAGE for part in _parts(name)]
    return sorted(found - {_file(root, entry)} - {None})


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file's import statements name, those within functions too; but for type checkers'."""
    found: set[str] = set()
    for node in _run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _run(child)


def _parts(name: str) -> Iterator[str]:
    """A module and the packages that it lies in."""
    names = name.split(".")
    return (".".join(names[:count]) for count in range(1, len(names) + 1))


def _file(root: Path, module: str) -> Path | None:
    """The file of a module; None where the name is that of something within one."""
    place = root.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
