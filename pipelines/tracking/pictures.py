"""Pictures of a training run, as PNG bytes.

matplotlib is imported when one is drawn, after training: a run's memory peak is no place for it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.drawing import figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_curve(history: Sequence[Mapping[str, float]]) -> bytes:
    """Training and validation loss over optimizer steps."""
    drawn, axes = _canvas()
    for name, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker="o" if len(points) < 40 else "", label=f"{label} ({len(points)} points)")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per trained token)", title="Loss", ylim=(0, None))
    axes.legend()
    return png(drawn)


def length_histogram(lengths: Sequence[int], limit: int | None) -> bytes:
    """Tokens per row after the chat template, with the trainer's limit drawn where rows come near it."""
    drawn, axes = _canvas()
    axes.hist(lengths, bins=min(60, max(lengths) - min(lengths) + 1))
    if limit is not None and limit <= 2 * max(lengths):
        axes.axvline(limit, color="tab:red", label=f"max_length {limit}")
        axes.legend()
    title = f"Lengths of {len(lengths):,} training rows (longest {max(lengths)}, max_length {limit})"
    axes.set(xlabel="tokens per row", ylabel="rows", title=title)
    return png(drawn)


def _canvas() -> "tuple[Figure, Axes]":
    drawn = figure(8, 4.5, pad=0.04167)
    axes = drawn.subplots()
    axes.grid(alpha=0.3)
    return drawn, axes
