"""Pictures of a training run, as PNG bytes.

matplotlib is imported when one is drawn, after training: a run's memory peak is no place for it.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any


def loss_curve(history: Sequence[Mapping[str, float]]) -> bytes:
    """Training and validation loss over optimizer steps."""
    figure, axes = _canvas()
    for name, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker="o" if len(points) < 40 else "", label=f"{label} ({len(points)} points)")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per trained token)", title="Loss", ylim=(0, None))
    axes.legend()
    return _png(figure)


def length_histogram(lengths: Sequence[int], limit: int | None) -> bytes:
    """Tokens per row after the chat template, with the trainer's limit drawn where rows come near it."""
    figure, axes = _canvas()
    axes.hist(lengths, bins=min(60, max(lengths) - min(lengths) + 1))
    if limit is not None and limit <= 2 * max(lengths):
        axes.axvline(limit, color="tab:red", label=f"max_length {limit}")
        axes.legend()
    title = f"Lengths of {len(lengths):,} training rows (longest {max(lengths)}, max_length {limit})"
    axes.set(xlabel="tokens per row", ylabel="rows", title=title)
    return _png(figure)


def _canvas() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
