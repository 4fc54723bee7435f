"""A few prompts' completions with what each was worth, as a table on the terminal."""

import io
import shutil
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.dataset.row import question
from pipelines.rewards.rollouts import Batch

PLAIN_WIDTH = 120
SHOWN_TEXT = 160  # characters of a completion


def shown(batch: Batch, groups: int) -> str:
    """The first `groups` prompts of a generation; colours only on a terminal."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else PLAIN_WIDTH
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False, emoji=False)
    for numbers in batch.groups()[:groups]:
        console.print(_table(batch, numbers))
    return str(console.file.getvalue()).rstrip()  # type: ignore[attr-defined]


def _table(batch: Batch, numbers: range) -> Table:
    row = batch.rows[numbers[0]]
    parts = next((list(found) for n in numbers if (found := batch.scored[n].parts)), [])
    title = f"step {batch.step}: {_short(question(row.prompt))} -> {_short(row.answer)}"
    table = Table(title=Text(title, style="bold"), title_justify="left")
    for name in ("completion", "tokens", "outcome", *parts, "reward"):
        table.add_column(name, justify="left" if name in ("completion", "outcome") else "right", overflow="fold")
    for number in numbers:
        answer, scored = batch.answers[number], batch.scored[number]
        values = [f"{(scored.parts or {}).get(name, float('nan')):.2f}" if scored.parts else "-" for name in parts]
        reward = "-" if scored.reward is None else f"{scored.reward:.2f}"
        cells = [_short(answer.text), f"{answer.num_tokens}{'' if answer.finished else ' cut'}", scored.told]
        # What a model wrote is text, not markup.
        table.add_row(*(Text(cell) for cell in (*cells, *values, reward)))
    return table


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]} …"
