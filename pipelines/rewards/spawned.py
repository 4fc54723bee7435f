"""The reward where answers are made in a process of their own: plain text that travels, opened where it is asked."""

import atexit
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config, Grpo, Task, Verifier
from pipelines.dataset.row import text_of
from pipelines.dataset.rows import read_rows
from pipelines.rewards.parts import Answer
from pipelines.rewards.rollouts import Batch, Rollouts
from pipelines.rewards.scoring import Scorer
from pipelines.verification import verification


@dataclass(frozen=True)
class SpawnedReward:
    """What a reward is made of, without anything that is open: blocks of the configuration as JSON, and places.

    `rows` is the file that the column `row` counts in, `rollouts` the folder that what was generated is kept in,
    `limit` the most tokens of an answer, `ends` the tokens that end one.
    """

    task: str
    verifier: str
    grpo: str
    seed: int
    rows: str
    rollouts: str
    run_id: str
    limit: int
    ends: tuple[int, ...]

    def __call__(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], row: Sequence[int], **_: Any
    ) -> list[float | None]:
        """The rewards of one prompt's answers; None where the verifier failed. One call at a time.

        Raises UserError where there is no verify, or too many of its answers are missing.
        """
        return _opened(self).rewards(completions, completion_ids, row)


def spawned(config: Config, rows: Path, rollouts: Path, run_id: str, limit: int, ends: Sequence[int]) -> SpawnedReward:
    """The reward that `config` describes."""
    blocks = (config.task.model_dump_json(), config.verifier.model_dump_json(), config.grpo.model_dump_json())
    return SpawnedReward(*blocks, config.seed, str(rows), str(rollouts), run_id, limit, tuple(ends))


class _Opened:
    """The reward with its rows read and its verifiers running, until the process ends."""

    def __init__(self, made_of: SpawnedReward) -> None:
        task, settings = Task.model_validate_json(made_of.task), Verifier.model_validate_json(made_of.verifier)
        checked = verification(task, settings)
        checked.__enter__()
        atexit.register(checked.__exit__, None, None, None)
        grpo = Grpo.model_validate_json(made_of.grpo)
        self._scorer = Scorer(grpo, checked, None, made_of.limit, made_of.seed)
        self._rows, self._ends = read_rows(Path(made_of.rows)), frozenset(made_of.ends)
        folder = Path(made_of.rollouts)
        self._rollouts = Rollouts(folder, made_of.run_id)
        # Which optimizer step will learn from an answer isn't known yet; after a restart the count goes on.
        self._number = max((int(path.stem) for path in folder.glob("*.parquet")), default=0)

    def rewards(self, completions: Sequence[Any], ids: Sequence[Sequence[int]], row: Sequence[int]) -> Any:
        self._number += 1
        rows = [self._rows[number] for number in row]
        answers = [
            Answer.of(text_of(messages[-1]), tokens, self._ends)
            for messages, tokens in zip(completions, ids, strict=True)
        ]
        scored = self._scorer.score(answers, rows, self._number)
        self._rollouts.add(Batch(self._number, rows, answers, scored, len(rows)))
        return [one.reward for one in scored]


@functools.cache
def _opened(made_of: SpawnedReward) -> _Opened:
    return _Opened(made_of)
