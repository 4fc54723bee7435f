"""Pictures of a training run, as PNG bytes.

matplotlib is imported when one is drawn, after training: a run's memory peak is no place for it.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev, stdev
from typing import TYPE_CHECKING, Any

from pipelines.drawing import figure, png

if TYPE_CHECKING:
    import pyarrow as pa
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


def reward_curves(rollouts: "pa.Table", history: Sequence[Mapping[str, float]]) -> bytes:
    """Four panels over optimizer steps: the reward with its interval and spread, its parts, the watch, and the shape.

    `rollouts` is the table of `pipelines.rewards.rollouts`, `history` are TRL's logs. A band is the 95 % interval of a
    step's mean over its prompts (Student's t), each prompt's answers counted as one.
    """
    steps = _by_step(rollouts)
    drawn = figure(11, 7.5)
    panels = drawn.subplots(2, 2)
    if steps:  # where every verifier failed there is no reward to draw
        _draw_reward(panels[0][0], steps)
        _draw_parts(panels[0][1], steps)
    _draw_watch(panels[1][0], history)
    _draw_shape(panels[1][1], history)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.set_xlabel("optimizer step")
    return png(drawn)


def _by_step(rollouts: "pa.Table") -> "dict[int, list[list[dict[str, Any]]]]":
    """The rollouts with a reward, by step and prompt."""
    found: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for record in rollouts.select(["step", "group", "reward", "parts"]).to_pylist():
        if record["reward"] is not None:
            found.setdefault(record["step"], {}).setdefault(record["group"], []).append(record)
    return {step: list(groups.values()) for step, groups in sorted(found.items())}


def _draw_reward(axes: "Axes", steps: "dict[int, list[list[dict[str, Any]]]]") -> None:
    means, lows, highs, spreads = [], [], [], []
    for groups in steps.values():
        mean, low, high = _t_interval([fmean(r["reward"] for r in group) for group in groups])
        means.append(mean)
        lows.append(low)
        highs.append(high)
        spreads.append(fmean(pstdev(r["reward"] for r in group) for group in groups))
    sizes = [len(groups) for groups in steps.values()]
    answers = round(fmean(len(group) for groups in steps.values() for group in groups))
    axes.fill_between(list(steps), lows, highs, color="tab:blue", alpha=0.15, linewidth=0)
    _smoothed(axes, list(steps), means, "mean, with its 95 % interval over prompts", "tab:blue")
    _smoothed(axes, list(steps), spreads, "spread (standard deviation) within a prompt's answers", "tab:orange")
    title = f"Reward ({round(fmean(sizes)):,} prompts a step, {answers} answers to each)"
    axes.set(ylabel="reward", title=title)
    axes.legend(fontsize="small")


def _draw_parts(axes: "Axes", steps: "dict[int, list[list[dict[str, Any]]]]") -> None:
    values: dict[str, list[tuple[int, float]]] = {}
    for step, groups in steps.items():
        records = [dict(record["parts"]) for group in groups for record in group]
        for name in records[0]:
            values.setdefault(name, []).append((step, fmean(record[name] for record in records)))
    for number, (name, points) in enumerate(values.items()):
        _smoothed(axes, [step for step, _ in points], [value for _, value in points], name, f"C{number}")
    num = sum(len(group) for groups in steps.values() for group in groups)
    axes.set(ylabel="mean value, before its weight", title=f"Parts of the reward ({num:,} answers)")
    axes.legend(fontsize="small")


def _draw_watch(axes: "Axes", history: Sequence[Mapping[str, float]]) -> None:
    names = {
        "frac_reward_zero_std": "prompts whose answers are worth the same",
        "completions/clipped_ratio": "answers cut off",
        "audit/refused": "accepted answers that the audit refuses",
        "verifier/failed": "answers without a verdict",
    }
    for name, label in names.items():
        _line(axes, history, name, label)
    axes.set(ylabel="share", title="Watch", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small")


def _draw_shape(axes: "Axes", history: Sequence[Mapping[str, float]]) -> None:
    _line(axes, history, "completions/mean_length", "tokens an answer", color="tab:blue")
    axes.set(ylabel="tokens", title="Length, entropy and KL", ylim=(0, None))
    right = axes.twinx()
    _line(right, history, "entropy", "entropy", color="tab:orange")
    _line(right, history, "kl", "KL to the reference", color="tab:green")
    right.set(ylabel="nats per token", ylim=(0, None))
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize="small")


def _smoothed(axes: "Axes", steps: Sequence[int], values: Sequence[float], label: str, color: str) -> None:
    """The values, and over them, where they are many, their mean over a twentieth of the steps, looking back."""
    window = len(values) // 20
    if window < 2:
        axes.plot(steps, values, color=color, label=label)
        return
    means = [fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
    axes.plot(steps, means, color=color, label=f"{label}; mean of {window} steps")


def _line(axes: "Axes", history: Sequence[Mapping[str, float]], name: str, label: str, **style: Any) -> None:
    points = [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    from scipy.stats import t

    mean = fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half
