"""What runs a notebook's cells within the sandbox, one after another in one set of names; it tells what the last says.

The file needs the standard library only, and nothing of this package: the sandbox gets its text before the cells.
Everything here is the cells' to patch, as they share its process; what they forge is told to whoever wrote them.
"""

import _ast
import sys
from collections.abc import Sequence
from typing import Any

MOST = 1000  # characters of what a cell prints
_TREE = 0x400  # compile's flag for a syntax tree, without an import of ast


class Paper:
    """Standard output that keeps the beginning, and counts the rest."""

    def __init__(self) -> None:
        self.kept, self.size = "", 0

    def write(self, text: str) -> int:
        text = str(text)
        self.kept += text[: max(0, MOST - self.size)]
        self.size += len(text)
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def text(self) -> str:
        more = self.size - len(self.kept)
        return self.kept + (f"... ({more} more)" if more > 0 else "")


def run_cells(cells: Sequence[str], data: str) -> str:
    """`+` and what the last cell printed, or `-`, its error in one line, and below what it had printed.

    The value of a last expression is printed as in a session; of earlier cells everything is done again, unheard.
    """
    names, *lines = [line.split(",") for line in data.split()]
    values = [[int(value) if value.isdigit() else value for value in line] for line in lines]
    rows = [dict(zip(names, line, strict=True)) for line in values]
    space: dict[str, Any] = {"__name__": "__main__", "data": data, "rows": rows}
    paper, error = Paper(), ""
    for cell in cells:
        paper = sys.stdout = sys.stderr = Paper()
        error = _run(cell, space)
    return f"-{error}\n{paper.text()}" if error else f"+{paper.text()}"


def _run(cell: str, space: dict[str, Any]) -> str:
    """Runs a cell; its error in one line, or nothing."""
    try:
        tree: Any = compile(cell, "<cell>", "exec", _TREE)
        last = tree.body.pop() if tree.body and type(tree.body[-1]).__name__ == "Expr" else None
        exec(compile(tree, "<cell>", "exec"), space)
        if last is not None:
            exec(compile(_ast.Interactive([last]), "<cell>", "single"), space)
    except BaseException as error:  # noqa: BLE001 SystemExit and KeyboardInterrupt are the cell's too
        return _told(error)
    return ""


def _told(error: BaseException) -> str:
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<cell>":
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        text = " ".join(str(error).split())[:200]
    except BaseException:  # noqa: BLE001 the cell's own exception may raise while it is printed
        text = ""
    kind = type(error).__name__
    return (f"line {line}: " if isinstance(line, int) else "") + (f"{kind}: {text}" if text else kind)
