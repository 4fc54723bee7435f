"""A teacher on this machine, asked in batches of rows; a killed run goes on behind its last whole batch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.generation.attempt import Attempt, seed_of
from pipelines.generation.episodes import Stage, told_of
from pipelines.policy.lengths import Room, prompt_lengths
from pipelines.subjects.local import LocalSubject
from pipelines.subjects.subject import Question, Reply


def attempts(
    config: Config, teacher: LocalSubject, rows: Sequence[Row], folder: Path, done: Callable[[int], None]
) -> list[Attempt]:
    """`generate.answers` tries at each row, row by row; the same each time, also after a restart.

    Every batch has a seed of its own, from which all its tries are drawn. Whole batches lie in `folder`. Raises
    UserError where a prompt leaves no room for an answer.
    """
    settings, stage = config.generate, Stage.of(config.task)
    if (context := getattr(teacher.model.config, "max_position_embeddings", None)) is not None:
        room = Room(context, "the teacher", settings.max_new_tokens, "generate.max_new_tokens")
        prompt_lengths(teacher.tokenizer, teacher.template, rows, room)
    folder.mkdir(exist_ok=True)
    found: list[Attempt] = []
    for at in range(0, len(rows), settings.at_once):
        place = folder / f"{at:08}.json"
        if not place.exists():
            made = _batch(config, teacher, rows[at : at + settings.at_once], stage)
            partial = place.with_suffix(".partial")
            partial.write_text(json.dumps([one.as_dict() for one in made]), encoding="utf-8")
            partial.replace(place)
        held = [Attempt.from_dict(one) for one in json.loads(place.read_text(encoding="utf-8"))]
        found += held
        done(len(held))
    return found


def _batch(config: Config, teacher: LocalSubject, rows: Sequence[Row], stage: Stage | None) -> list[Attempt]:
    tries = config.generate.answers or 1
    seed = seed_of(config.seed, rows[0].id)
    repeated = [row for row in rows for _ in range(tries)]

    def ask(questions: list[Question], turn: int) -> list[Reply]:
        # A turn begins with a seed of its own, or it would draw the numbers of the one before.
        asked = replace(teacher, seed=(seed + turn) % 2**32)
        limit, temperature = config.generate.max_new_tokens, config.generate.temperature
        if temperature is None:
            return asked.answer(questions, limit, _quiet)
        return asked.sample(questions, limit, temperature, _quiet)

    if stage is not None:
        episodes = stage.play(repeated, ask)
        return [
            Attempt(row.id, number % tries, seed=seed, num_tokens=one.num_tokens, **told_of(one))
            for number, (row, one) in enumerate(zip(repeated, episodes, strict=True))
        ]
    replies = ask([Question(row.prompt, row.tools) for row in repeated], 0)
    return [
        Attempt(
            row=row.id,
            number=number % tries,
            text=reply.text,
            seed=seed,
            error=reply.error,
            finished=reply.finished,
            prompt_tokens=reply.prompt_tokens,
            num_tokens=reply.num_tokens,
        )
        for number, (row, reply) in enumerate(zip(repeated, replies, strict=True))
    ]


def _quiet(count: int) -> None:
    """A try that isn't on disk yet is no progress."""
