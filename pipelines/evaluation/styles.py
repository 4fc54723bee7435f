"""How each subject looks in every picture: by colour, by brightness and by marker, so that no reader needs colours."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.evaluation.findings import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches: narrow enough for a telephone to show the whole picture with its text readable.
WIDTH = 5.8
# From dark to light, after the colours of Okabe and Ito that stay apart in every kind of colour-blindness.
_COLORS = ("#0b4a86", "#a9b4bf", "#d55e00", "#e69f00", "#009e73", "#56b4e9")
_MARKERS = "osD^vP"
_LINES = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, slots=True)
class Style:
    """A subject's colour, marker and kind of line."""

    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


def styles(findings: Findings) -> dict[str, Style]:
    """The candidate first and darkest, the reference next, in grey; then the others in their order."""
    setup = findings.setup
    names = dict.fromkeys((setup.candidate, setup.reference, *setup.subjects))
    return {
        name: Style(_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)], _LINES[i % len(_LINES)])
        for i, name in enumerate(names)
    }


def bare(axes: "Axes", grid: Literal["x", "y", "both"]) -> None:
    """A light grid behind what is drawn, and no frame where no scale is."""
    axes.grid(axis=grid, color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
