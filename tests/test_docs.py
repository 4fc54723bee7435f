"""The commands that README and docs show are commands that work: their configuration composes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.__main__ import STAGES, parse
from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
THE_READERS_OWN = {"task=claims": "task=support_routing", "prepare.rows": ""}


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every `python -m pipelines` and `mlflow run` line in the page's shell blocks."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:3] == ["python", "-m", "pipelines"] or words[:2] == ["mlflow", "run"]:
                yield words


def arguments(words: list[str]) -> list[str]:
    """What the launcher would get."""
    if words[0] == "python":
        return [THE_READERS_OWN.get(word, word) for word in words[3:]]
    parameters = [words[i + 1] for i, word in enumerate(words) if word == "-P"]
    found = [words[words.index("-e") + 1]]
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        found += ["--overrides", value] if name == "overrides" else [f"--{name}", value]
    return found


SHOWN = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=[f"{page}: {' '.join(words)}" for page, words in SHOWN])
def test_shown_command_is_valid(page: str, words: list[str]) -> None:
    command = parse(arguments(words))
    assert command.stage in STAGES
    if command.multirun:
        from pipelines.config.sweep import combinations, uses_plugins
        from pipelines.sweeping import varies

        if uses_plugins(command.overrides):
            assert compose([text for text in command.overrides if not varies(text)])
            return
        assert all(compose(job) for job in combinations(command.overrides))
    else:
        assert compose(command.overrides)


def test_pages_show_commands_and_link_to_files_that_are_there() -> None:
    assert len(SHOWN) > 15
    for page in [*PAGES, PROJECT / "benchmarks/README.md", PROJECT / "data/README.md", PROJECT / "adapters/README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
