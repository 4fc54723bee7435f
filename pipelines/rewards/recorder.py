"""Between TRL's trainer and the rewards: scores each generation, keeps it, shows it, and watches the logs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, Protocol

from pipelines.config.schema import Grpo
from pipelines.dataset.row import Row, text_of
from pipelines.environments.calls import transcript
from pipelines.progress import say
from pipelines.rewards.parts import Answer
from pipelines.rewards.rollouts import Batch, Rollouts
from pipelines.rewards.scoring import Scored, Scorer
from pipelines.rewards.table import shown
from pipelines.rewards.watch import REFUSED, Watch, metrics_of, stop_for

Logs = Mapping[str, float]
WHOLE = "whole"
FAILED = "verifier/failed"
SPREAD = "reward_spread"


class Sink(Protocol):
    """Where metrics and episodes go: the run."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...

    def episodes(self, batch: Batch, numbers: Sequence[int]) -> None: ...


class Recorder:
    """One training run's rewards. `ends` are the tokens that end an answer, set once the trainer knows them.

    TRL asks one function after the other about the same completions. The first one scores them and is the reward; the
    parts are asked for their logs.
    """

    def __init__(
        self, settings: Grpo, scorer: Scorer, rows: Sequence[Row], size: int, rollouts: Rollouts, sink: Sink
    ) -> None:
        self.settings, self.scorer, self.rows, self.rollouts, self._sink = settings, scorer, rows, rollouts, sink
        self._size = size  # answers to one prompt
        self.ends: frozenset[int] = frozenset()
        self.has_tools = False
        self.history: list[dict[str, float]] = []
        self._watch = Watch(settings.watch)
        self._scored: list[Scored] = []

    def functions(self) -> dict[str, Callable[..., list[float | None]]]:
        """Reward functions by the name that TRL logs them under: the whole, and each part with a weight."""
        found: dict[str, Callable[..., list[float | None]]] = {}
        for name in (WHOLE, *self.scorer.weights):
            found[name] = functools.partial(self._values, name)
            found[name].__name__ = name
        return found

    def begin_at(self, step: int, history: Sequence[Mapping[str, float]]) -> None:
        """Goes on from a checkpoint of that step and the logs before it."""
        self.rollouts.begin_at(step + 1)
        for logs in history:
            if "reward" in logs:
                self.history.append(dict(logs))
                self._watch.observe(logs)

    def log(self, values: Logs, step: int) -> None:
        """TRL's logs with the alarms that they raise. Raises Refused where one of these ends the run."""
        if "reward" not in values:
            self._sink.metrics({f"grpo/{name}": value for name, value in values.items()}, step)
            return
        before = set(self._on())
        raised = self._watch.observe(values)
        self.history.append({**values, **metrics_of(raised), "step": step})
        self._sink.metrics({f"grpo/{k}": v for k, v in {**values, **metrics_of(raised)}.items()}, step)
        for alarm in raised:
            if alarm.name not in before:
                say(f"  alarm at step {step}: {alarm} over the last {self.settings.watch.window} steps")
        stop_for(raised, step, self.settings.watch.window)

    def _on(self) -> list[str]:
        last = self.history[-1] if self.history else {}
        return [name.removeprefix("alarm/") for name, value in last.items() if name.startswith("alarm/") and value]

    def _values(self, name: str, completions: Sequence[Any], completion_ids: Sequence[Any], **given: Any) -> list[Any]:
        """The reward, or one part of it; None where the verifier failed, so that nothing is learnt from the answer."""
        if name == WHOLE:
            self._score(completions, completion_ids, given)
            return [scored.reward for scored in self._scored]
        return [None if scored.parts is None else scored.parts[name] for scored in self._scored]

    def _score(self, completions: Sequence[Any], completion_ids: Sequence[Any], given: Mapping[str, Any]) -> None:
        rows = [self.rows[number] for number in given["row"]]
        answers = [self._answer(text, ids) for text, ids in zip(completions, completion_ids, strict=True)]
        step = int(given["trainer_state"].global_step) + 1
        self._scored = self.scorer.score(answers, rows, step)
        batch = Batch(step, rows, answers, self._scored, self._size)
        for name, value in _measured(batch).items():
            given["log_metric"](name, value)
        self.rollouts.add(batch)
        self._show(batch)

    def _answer(self, messages: Any, ids: Sequence[int]) -> Answer:
        text = transcript(messages) if self.has_tools else text_of(messages[-1])
        return Answer.of(text, ids, self.ends)

    def _show(self, batch: Batch) -> None:
        show = self.settings.show
        if show.table_steps is not None and (batch.step - 1) % show.table_steps == 0:
            say(shown(batch, show.table_groups))
        if self.has_tools and show.trace_steps is not None and (batch.step - 1) % show.trace_steps == 0:
            self._sink.episodes(batch, batch.groups()[0])


def _measured(batch: Batch) -> dict[str, float]:
    """What TRL's logs lack: failed verifiers, the audit's refusals, and how far a prompt's answers differ."""
    confirmed = [scored.confirmed for scored in batch.scored if scored.confirmed is not None]
    found = {FAILED: sum(scored.reward is None for scored in batch.scored) / len(batch.scored)}
    if confirmed:
        found[REFUSED] = confirmed.count(False) / len(confirmed)
    spreads = []
    for numbers in batch.groups():
        rewards = [reward for n in numbers if (reward := batch.scored[n].reward) is not None]
        if rewards:
            spreads.append(pstdev(rewards))
    if spreads:
        found[SPREAD] = fmean(spreads)
    return found
