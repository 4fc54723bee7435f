"""What an evaluation needs beside rows and models, checked in a moment and before anything is trained."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.evaluation import faithfulness, judge
from pipelines.evaluation.heldout import card_of
from pipelines.evaluation.red_team import read_attacks
from pipelines.evaluation.structured import valid_against


def check(config: Config) -> None:
    """Raises UserError for a card, an attack, a schema, a prompt, a key or a package that is wrong or missing."""
    card_of(config)
    settings = config.evaluate
    if settings.red_team.wraps is not None:
        read_attacks(config.task.red_team)
    if settings.json_schema is not None:
        valid_against(settings.json_schema)
    if settings.judge.at is not None:
        for part, prompt in ((judge, settings.judge.prompt), (faithfulness, settings.judge.claims_prompt)):
            judge.check_template(prompt, part.FIELD, part.PLACEHOLDERS)
    if settings.harness.tasks and find_spec("lm_eval") is None:
        raise UserError('evaluate.harness.tasks: needs lm-eval; pip install "tunesmith[eval]"')
    for field, key in _keys(config):
        variable = key.removeprefix("env:")
        if variable not in os.environ:
            raise UserError(f"{field}: the environment has no variable {variable}")


def _keys(config: Config) -> Iterator[tuple[str, str]]:
    """The fields that name a key, with what they name."""
    endpoints = {f"evaluate.subjects.{name}": one for name, one in config.evaluate.subjects.items()}
    for field, one in {**endpoints, "evaluate.judge": config.evaluate.judge}.items():
        if one.api_key is not None and one.at is not None:
            yield f"{field}.api_key", one.api_key
