"""Figures and their PNG bytes; matplotlib is imported when one is drawn, because little else needs it."""

import io
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
LINE_WIDTH = 28


def figure(width: float, height: float, pad: float = 0.12) -> "Figure":
    """An empty figure without a window; `width`, `height` and the `pad` around its parts are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    drawn = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad))
    FigureCanvasAgg(drawn)
    return drawn


def png(drawn: "Figure") -> bytes:
    """The figure as PNG, without the version of matplotlib: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def wrapped(name: str) -> str:
    """The name over at most three lines, broken at underscores and spaces where it is long."""
    lines = textwrap.wrap(name.replace("_", "_ "), LINE_WIDTH, max_lines=3, placeholder=" …")
    return "\n".join(line.replace("_ ", "_") for line in lines)
