"""The chain as a tree, and as a picture in which nothing overlaps and no text leaves its box."""

from itertools import combinations

from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Bbox

from pipelines.release.family import tree
from pipelines.release.picture import MOST, columns_of, draw, picture
from tests.release.family import DIGEST, family


def test_tree_names_every_link() -> None:
    lines = str(tree(family())).splitlines()
    assert lines[0].startswith("models:/dev.a_very_long_name_of_a_model/123  registered 2026-11-26 16:26:11 UTC")
    below = [line.strip("│├└─ ") for line in lines]
    assert sum(line.startswith("source_with_a_long_name_") for line in below) == 14
    assert "parent adapter bbbbbbbbbbbb  by sft, run dddddddd, models:/x/1" in below
    assert "parent adapter 999999999999  run unknown, in no registered version" in below
    assert "teacher https://api.example.com/v1/some/long/path  proprietary" in below
    assert f"rows {DIGEST[:12]}  1,240 contaminated rows removed, 12 left in" in below
    assert "run cccccccc (gone)" in str(tree(family()))
    assert "accuracy 84.0% [82.0%, 85.0%]" in str(tree(family()))
    assert "pass  accuracy: 0.84" in below
    assert below[-1] == "aliases now  candidate, models:/prod.x/1: champion, champion-previous"
    assert lines[-1].startswith("└─ ")
    older = next(line for line in lines if "999999999999" in line)
    assert older.startswith("│  │  └─ ")  # below the parent that it was before


def test_no_text_leaves_its_box_and_no_box_lies_on_another() -> None:
    drawn = draw(family())
    (axes,) = drawn.axes
    renderer = drawn.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [patch.get_window_extent(renderer) for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == sum(map(len, columns_of(family())))
    assert len(axes.texts) > len(boxes)
    for text in axes.texts:
        found = text.get_window_extent(renderer)
        assert any(_within(found, box) for box in boxes), text.get_text()
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for one, other in combinations([text.get_window_extent(renderer) for text in axes.texts], 2):
        assert not one.overlaps(other)


def _within(inner: Bbox, outer: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)


def test_many_sources_are_counted() -> None:
    sources, *_ = columns_of(family())
    assert len(sources) == MOST
    assert sources[-1].title == "and 5 more"


def test_picture_is_the_same_every_time() -> None:
    first = picture(family(), "png")
    assert first.startswith(b"\x89PNG")
    assert picture(family(), "png") == first
    assert picture(family(), "svg").startswith(b"<?xml")
