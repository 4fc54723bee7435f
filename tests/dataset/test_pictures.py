"""Pictures are looked at through their pixels and through what matplotlib was asked to draw."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from pipelines.dataset import pictures
from pipelines.dataset.pictures import Lengths, funnel, label_shares, length_histograms
from pipelines.drawing import figure, png

FUNNEL = [{"step": "records read", "rows": 10}, {"step": "exact duplicates", "removed": 4, "rows": 6}]
LABELS = {"train": {"a": 30, "b": 10}, "validation": {}, "heldout": {"a": 5, "b": 5}}
SAMPLED = {"train": [10, 20, 30, 20], "validation": [], "heldout": [15]}
LENGTHS = Lengths("tokens", 64, SAMPLED, {"train": 9_000, "validation": 0, "heldout": 1})


def pixels(content: bytes) -> "np.ndarray[Any, Any]":
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that became a PNG."""
    figures: list[Figure] = []

    def keep(made: Figure) -> bytes:
        figures.append(made)
        return png(made)

    monkeypatch.setattr(pictures, "png", keep)
    return figures


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def words(made: Figure) -> str:
    def texts() -> Iterator[str]:
        for axes in made.axes:
            yield from (text.get_text() for text in axes.texts)
            yield from (label.get_text() for label in [*axes.get_yticklabels(), *axes.get_xticklabels()])
            yield from (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel())
        yield from (text.get_text() for legend in made.legends for text in legend.get_texts())

    return "\n".join(texts())


def test_the_same_input_gives_the_same_bytes_without_a_version_of_matplotlib() -> None:
    for draw in (lambda: funnel(FUNNEL), lambda: label_shares(LABELS), lambda: length_histograms(LENGTHS)):
        first = draw()
        assert first == draw()
        assert set(Image.open(io.BytesIO(first)).info) == {"dpi"}
        assert len(np.unique(pixels(first))) > 50


def test_other_numbers_give_another_picture() -> None:
    assert funnel(FUNNEL) != funnel([FUNNEL[0], FUNNEL[1] | {"removed": 3, "rows": 7}])
    assert label_shares(LABELS) != label_shares(LABELS | {"heldout": {"a": 6, "b": 4}})
    changed = Lengths("tokens", 64, SAMPLED | {"heldout": [16]}, LENGTHS.totals)
    assert length_histograms(LENGTHS) != length_histograms(changed)


def test_the_funnel_names_steps_rows_and_what_was_removed(drawn: list[Figure]) -> None:
    funnel(FUNNEL)
    left = [patch.get_width() for patch in bars(drawn[0].axes[0])]
    assert left == [10, 6, 0, 4]
    assert "6 (-4)" in words(drawn[0])
    assert "exact duplicates" in words(drawn[0])


def test_label_shares_carry_the_split_sizes_and_wilson_intervals(drawn: list[Figure]) -> None:
    label_shares(LABELS)
    said = words(drawn[0])
    assert "train (n=40)\nvalidation (n=0)\nheldout (n=10)" in said
    assert "share of the split's rows in %, with 95 % interval" in said
    train = drawn[0].axes[0].containers[0]
    assert isinstance(train, ErrorbarContainer)
    assert np.asarray(train.lines[0].get_xdata()).tolist() == [75.0, 25.0]
    segments = train.lines[2][0].get_segments()
    # Wilson's interval of 30 in 40, by his formula with z = 1.96.
    middle = (0.75 + 1.96**2 / 80) / (1 + 1.96**2 / 40)
    half = 1.96 / (1 + 1.96**2 / 40) * (0.75 * 0.25 / 40 + 1.96**2 / 6400) ** 0.5
    assert segments[0][:, 0].tolist() == pytest.approx([100 * (middle - half), 100 * (middle + half)], abs=0.01)


def test_of_many_labels_the_most_frequent_are_drawn(drawn: list[Figure]) -> None:
    counts = {f"label_{n:03}": 200 - n for n in range(150)}
    label_shares({"train": counts, "heldout": {"rare_elsewhere": 900}})
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert names == ["rare_elsewhere", *(f"label_{n:03}" for n in range(19))]


@pytest.mark.parametrize(
    "labels",
    [
        {"train": {"only": 3}, "validation": {}, "heldout": {"only": 1}},
        {"train": {"": 10**6}, "validation": {"": 5}, "heldout": {"": 1}},
        {"train": {"x" * 300: 2, "cost_in_$_or_$^{": 1, "ein Name " * 40: 1}, "validation": {}, "heldout": {}},
        {"train": {}, "validation": {}, "heldout": {}},
        {},
    ],
)
def test_odd_labels_are_drawn(labels: dict[str, dict[str, int]], drawn: list[Figure]) -> None:
    image = pixels(label_shares(labels))
    assert image.shape[1] < 650
    assert image.min() < 100
    assert ("(no label)" in words(drawn[0])) == any("" in counts for counts in labels.values())
    assert ("no rows" in words(drawn[0])) == (not any(labels.values()))


def test_histograms_name_the_sample_the_total_and_the_limit(drawn: list[Figure]) -> None:
    length_histograms(LENGTHS)
    said = words(drawn[0])
    assert "train (n=4, a sample of 9,000)" in said
    assert "heldout (n=1)" in said
    assert "validation" not in said
    assert "tokens per row" in said
    assert [line.get_xdata() for axes in drawn[0].axes for line in axes.lines] == [[64.0, 64.0]] * 2
    for axes in drawn[0].axes:
        assert sum(patch.get_height() for patch in bars(axes)) == pytest.approx(100)


def test_a_limit_far_beyond_the_rows_is_named_at_the_edge(drawn: list[Figure]) -> None:
    length_histograms(Lengths("tokens", 131_072, SAMPLED, LENGTHS.totals))
    assert "limit 131,072 →" in words(drawn[0])
    assert all(not axes.lines and axes.get_xlim()[1] < 100 for axes in drawn[0].axes)


@pytest.mark.parametrize("limit", [None, 1, 300, 40_000, 10**6])
def test_no_row_falls_outside_the_bins(limit: int | None, drawn: list[Figure]) -> None:
    values = [0, 1, 2, 3, 7, 12, 12, 13, 40, 39_999, 40_000]
    length_histograms(Lengths("characters", limit, {"train": values, "heldout": [0]}, {"train": 11, "heldout": 1}))
    assert drawn[0].axes[0].get_xscale() == "log"
    for axes in drawn[0].axes:
        assert sum(patch.get_height() for patch in bars(axes)) == pytest.approx(100)


@pytest.mark.parametrize("by_split", [{}, {"train": []}, {"train": [0]}, {"train": [5] * 1000}])
def test_few_lengths_are_drawn(by_split: dict[str, list[int]], drawn: list[Figure]) -> None:
    length_histograms(Lengths("tokens", 128, by_split, {"train": 1000}))
    assert ("no rows" in words(drawn[0])) == (not any(by_split.values()))


def test_a_figure_has_the_size_that_was_asked() -> None:
    assert pixels(png(figure(3, 2))).shape == (220, 330)
