"""The data sets of reasoning-gym (Stojanovski et al. 2025), each by its name.

Rows are made in a process of their own: some data sets go through sets of words, whose order Python decides when it
starts, and some print.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import PROJECT
from pipelines.errors import UserError

PACKAGE = "reasoning_gym"
# Where a data set leaves its answer empty because several are right, one stands here.
_ONE_ANSWER = {"graph_color": "possible_answer", "rubiks_cube": "example_correct_answer"}
REFUSED = {
    "boxnet": "it gives no answer of its own to check its scores with",
    "composite": "it mixes others; name each in a source of its own",
    "propositional_logic": "a premise written down again scores as a conclusion",
    "rush_hour": "it gives no answer of its own to check its scores with",
}
_OURS = ("seed", "size")  # what the source's own fields say
_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def generate(name: str, count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`count` problems of a data set as {prompt, answer, entry}, the same ones wherever they are made.

    `entry` is what the data set's own scorer needs beside the answer, as JSON: dataset, settings and metadata.
    Raises UserError for an unknown name, for settings that the data set refuses, and where it fails.
    """
    installed()
    asked = json.dumps({"name": name, "count": count, "seed": seed, "settings": dict(settings)})
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-W", "ignore", "-m", __name__, asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment) as child:
        try:
            for line in child.stdout or ():
                made = json.loads(line)
                if "fault" in made:
                    raise UserError(made["fault"])
                yield made
        except BaseException:  # one that nobody reads on would wait for ever
            child.kill()
            raise
    if child.returncode:
        raise UserError(f"generate: {PACKAGE}:{name} ended with {child.returncode} before its rows were made")


def _made(name: str, count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    made = dataset(name, settings, count, seed)
    for number in range(count):
        try:
            item = made[number]
        except _FAULTS as error:
            raise UserError(f"generate: {PACKAGE}:{name} fails at row {number + 1}: {_said(error)}") from error
        metadata = item["metadata"]
        entry = {"dataset": name, "settings": dict(settings), "metadata": metadata}
        answer = metadata[_ONE_ANSWER[name]] if name in _ONE_ANSWER else item["answer"]
        written = answer if isinstance(answer, str) else json.dumps(answer, default=_plain)
        yield {"prompt": item["question"], "answer": written, "entry": json.dumps(entry, default=_plain)}


def _child(asked: str) -> None:
    """Writes a line for each row, or one that says why there is none."""
    out = sys.stdout
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            for made in _made(**json.loads(asked)):
                out.write(json.dumps(made) + "\n")
        except UserError as error:
            out.write(json.dumps({"fault": str(error)}) + "\n")
        out.flush()


def dataset(name: str, settings: Mapping[str, Any], count: int, seed: int) -> Any:
    """The library's data set. Raises UserError for an unknown name and for settings that it refuses."""
    datasets = _datasets()
    if name in REFUSED:
        raise UserError(f"generate: {PACKAGE}:{name} can't be used: {REFUSED[name]}")
    if name not in datasets:
        guess = did_you_mean(name, set(datasets) - set(REFUSED))
        raise UserError(f"generate: {PACKAGE} has no data set {name!r}{guess}")
    made, config = datasets[name]
    fields = {field.name: field for field in dataclasses.fields(config)}
    allowed = [field for field in fields if field not in _OURS]
    for setting in settings:
        if setting not in allowed:
            raise UserError(f"settings: {name} has no setting {setting!r}{did_you_mean(setting, allowed)}")
    given = {setting: _as_default(fields[setting], value) for setting, value in settings.items()}
    try:
        return made(config=config(**given, size=count, seed=seed))
    except _FAULTS as error:
        raise UserError(f"settings: {name} refuses them: {_said(error)}") from error


def installed() -> str:
    """The library's version. Raises UserError where it isn't there."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        raise UserError('generate: reasoning-gym is not installed; pip install "tunesmith[rl]"') from None


def _datasets() -> dict[str, Any]:
    installed()
    from reasoning_gym.factory import DATASETS

    return dict(DATASETS)


def _as_default(field: Any, value: Any) -> Any:
    """A list as the tuple that the library's own default is."""
    return tuple(value) if isinstance(value, list) and isinstance(field.default, tuple) else value


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as JSON's, sets in order."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no part of JSON")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


if __name__ == "__main__":
    _child(sys.argv[1])
