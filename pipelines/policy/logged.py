"""What goes into a trainer's own log of a step, beside what the trainer measures."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback


class AddsToLogs(TrainerCallback):
    """Adds what `measures` says to every log of a training step."""

    def __init__(self, measures: Callable[[], Mapping[str, float]]) -> None:
        self._measures = measures

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            logs |= self._measures()
