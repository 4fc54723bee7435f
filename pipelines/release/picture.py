"""A version's chain as a picture: boxes in columns, sources at the left, aliases at the right."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.drawing import figure, png
from pipelines.release.family import Family, Holder, contamination, generated_digest, headline, licence, teacher_name
from pipelines.release.sameness import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, GAP, APART = 2.15, 0.5, 0.16  # of a box, between columns, between boxes of a column: inches
LINE, TITLE, PAD = 0.135, 0.2, 0.09
CHARACTERS = 31  # of a line of 7 points in a box
TITLE_CHARACTERS = 26  # of 8 points, bold
MOST = 10  # boxes of sources; a picture of hundreds says nothing
INK = "#5b6570"
COLOURS = {
    "source": "#e8eef7",
    "rows": "#d3e2f4",
    "model": "#e9e4f2",
    "adapter": "#dcefe0",
    "scores": "#f6ecd2",
    "version": "#cfe8d5",
    "alias": "#f7dcd3",
}


@dataclass
class Box:
    """A thing of the picture; `to` are those that were made of it."""

    kind: str
    title: str
    lines: Sequence[str]
    to: list["Box"] = field(default_factory=list)
    left: float = 0.0
    middle: float = 0.0

    @property
    def wrapped(self) -> list[str]:
        return [part for line in self.lines for part in textwrap.wrap(line, CHARACTERS)]

    @property
    def height(self) -> float:
        return TITLE + LINE * len(self.wrapped) + 2 * PAD


def picture(family: Family, kind: str) -> bytes:
    """The chain as PNG or SVG."""
    drawn = draw(family)
    if kind == "png":
        return png(drawn)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def draw(family: Family) -> "Figure":
    """The chain as a figure whose coordinates are inches."""
    columns = columns_of(family)
    height = max(sum(box.height + APART for box in column) for column in columns) + APART
    width = len(columns) * (WIDTH + GAP) - GAP + 2 * APART
    drawn = figure(width, height)
    drawn.set_layout_engine("none")
    axes = drawn.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    for number, column in enumerate(columns):
        _place(column, APART + number * (WIDTH + GAP), height)
    for column in columns:
        for box in column:
            _draw(axes, box)
    return drawn


def columns_of(family: Family) -> list[list[Box]]:
    """The boxes, each with what was made of it; the columns that hold something."""
    version = Box("version", _name(family.version), [family.version.at, f"files {short(family.digest)}"])
    scores = Box("scores", "scores", _scores(family), [version])
    made = family.ancestry
    adapter = Box("adapter", f"adapter {short(made.adapter['digest'])}", _adapter(family), [version, scores])
    rows = Box("rows", f"rows {short(made.rows)}", [contamination(made)], [adapter])
    copies = [Box("version", _name(copy), [f"copy, {copy.at}"]) for copy in family.copies]
    own = _aliases(family.version, version)
    version.to += copies
    of_copies = [box for copy, holder in zip(copies, family.copies, strict=True) for box in _aliases(holder, copy)]
    middle = [rows, *_models(family, adapter)]
    found = [_sources(family, rows), middle, [adapter, scores], [version], [*own, *copies], of_copies]
    return [column for column in found if column]


def _aliases(holder: Holder, box: Box) -> list[Box]:
    held = [Box("alias", f"@{alias}", []) for alias in holder.aliases]
    box.to += held
    return held


def _sources(family: Family, rows: Box) -> list[Box]:
    shown = family.ancestry.sources if len(family.ancestry.sources) <= MOST else family.ancestry.sources[: MOST - 1]
    boxes = []
    for one in shown:
        content = str(one.get("sha256") or one.get("revision") or "content not known")
        lines = [f"{one['split']}, {licence(one)}", content[:12] if " " not in content else content]
        boxes.append(Box("source", str(one["name"]), lines, [rows]))
    if hidden := len(family.ancestry.sources) - len(shown):
        boxes.append(Box("source", f"and {hidden} more", ["the tree names them"], [rows]))
    return boxes


def _models(family: Family, adapter: Box) -> list[Box]:
    """What a teacher wrote, base, parents and teachers."""
    base = family.ancestry.base
    revision = f"{short(str(base['revision']))}, {base['license']}"
    generated = family.ancestry.generated
    boxes = [Box("rows", f"generated {generated_digest(generated)}", ["by a teacher"], [adapter])] if generated else []
    boxes.append(Box("model", f"base {_end(str(base['id']))}", [revision], [adapter]))
    made_of = adapter
    for parent in family.parents:
        lines = [f"by {parent.stage or 'nobody known'}", parent.version or "in no registered version"]
        made_of = Box("model", f"parent {short(parent.digest)}", lines, [made_of])
        boxes.append(made_of)
    for teacher in family.ancestry.teachers:
        licence = str((teacher.get("license") or {}).get("id", "licence unknown"))
        boxes.append(Box("model", "teacher", [teacher_name(teacher), licence], [adapter]))
    return boxes


def _adapter(family: Family) -> list[str]:
    made = family.ancestry
    commit = f"commit {short(made.commit)}{', changed' if made.dirty else ''}" if made.commit else "no git checkout"
    return [f"{made.adapter['stage']}, seed {made.seed}", commit, family.run(made.adapter.get("run"))]


def _scores(family: Family) -> list[str]:
    made = family.ancestry.scores
    found = headline(family)
    return [*([found] if found else []), f"on held-out {short(made['heldout'])}", family.run(made["run"])]


def _name(holder: Holder) -> str:
    return holder.uri.removeprefix("models:/")


def _end(name: str) -> str:
    """The last part of a Hub id or a path."""
    return name.rstrip("/").rpartition("/")[2]


def _place(column: Sequence[Box], left: float, height: float) -> None:
    """The column's boxes below one another, in the middle of the picture."""
    used = sum(box.height + APART for box in column) - APART
    top = (height + used) / 2
    for box in column:
        box.left, box.middle = left, top - box.height / 2
        top -= box.height + APART


def _draw(axes: "Axes", box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner, top = (box.left, box.middle - box.height / 2), box.middle + box.height / 2
    shape = FancyBboxPatch(corner, WIDTH, box.height, f"round,pad=0,rounding_size={PAD / 2}")
    shape.set(facecolor=COLOURS[box.kind], edgecolor=INK, linewidth=0.8)
    axes.add_patch(shape)
    x = box.left + PAD
    axes.text(
        x, top - PAD - TITLE / 2, _shortened(box.title), fontsize=8, fontweight="bold", va="center", parse_math=False
    )
    for number, line in enumerate(box.wrapped):
        y = top - PAD - TITLE - LINE * (number + 0.5)
        axes.text(x, y, line, fontsize=7, family="monospace", va="center", parse_math=False)
    for target in box.to:
        _arrow(axes, box, target)


def _shortened(title: str) -> str:
    """Without its middle where it is long: names differ at their ends."""
    half = (TITLE_CHARACTERS - 1) // 2
    return title if len(title) <= TITLE_CHARACTERS else f"{title[:half]}…{title[-half:]}"


def _arrow(axes: "Axes", box: Box, target: Box) -> None:
    """To the right; down or up where both are of one column."""
    from matplotlib.patches import FancyArrowPatch

    start, end = (box.left + WIDTH, box.middle), (target.left, target.middle)
    if target.left == box.left:
        down = 1 if target.middle < box.middle else -1
        start = (box.left + WIDTH / 2, box.middle - down * box.height / 2)
        end = (target.left + WIDTH / 2, target.middle + down * target.height / 2)
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=0)
    arrow.set(color=INK, linewidth=0.8, zorder=0)
    axes.add_patch(arrow)
