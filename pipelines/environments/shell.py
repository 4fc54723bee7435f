"""A shell over a small tree of text files, every command in a sandbox of its own.

The tree lives here between commands: it is written into the sandbox before one and read back behind it, so that
episodes share nothing. A command that runs into a limit has changed nothing.
"""

import json
import random
import time
from typing import Any

from pipelines.environments.environment import Tool
from pipelines.environments.texts import NOTHING, Refused, refusal, seed_of, shortened, text_of, text_tool
from pipelines.sandbox import commands
from pipelines.tasks.verdict import VerifierFailed

LONGEST = 1000  # characters of a command
MOST_TEXT = 800  # characters of an answer
EPISODE_S = 1.5  # of commands, in one episode; the last one may take its own limit beyond
TOOLS = (text_tool("Run a command in the folder of the files.", "sh", command="for /bin/sh"),)
_FOLDERS = ("notes", "logs", "data", "old", "drafts", "mail")
_NAMES = ("plan", "list", "draft", "todo", "ideas", "trip", "budget", "menu", "books", "songs", "plants", "team")
WORDS = ("red", "blue", "green", "paper", "stone", "river", "apple", "bread", "cloud", "tiger")
_MARKS = ("error", "warn", "ok")


class Shell:
    """The shell of one episode. No call raises but where the sandbox fails: what is wrong is told as an error."""

    runs_programs = True

    def __init__(self) -> None:
        self._tree: dict[str, bytes | None] = {}
        self._failure: VerifierFailed | None = None
        self._left = EPISODE_S

    def reset(self, **row: Any) -> None:
        """Begins with the tree of the row's seed. Raises DataError where it keeps none."""
        self._tree = {path: None if text is None else text.encode() for path, text in world(seed_of(row)).items()}
        self._left, self._failure = EPISODE_S, None

    def tools(self) -> list[Tool]:
        """The tool."""
        return [json.loads(json.dumps(item)) for item in TOOLS]

    def call(self, name: str, arguments: Any) -> str:
        """What the command wrote, as text; an error where it did not end with 0."""
        try:
            if name != "sh":
                raise Refused("unknown tool")
            return self._sh(text_of(arguments, "command", LONGEST))
        except Refused as refused:
            return refusal(str(refused))

    def state(self) -> dict[str, Any]:
        """The files with their texts, but for line ends at their end, and the folders.

        Raises VerifierFailed where the sandbox failed in this episode: a call that wasn't made changed nothing.
        """
        if self._failure is not None:
            raise self._failure
        texts = {
            path: content.decode(errors="backslashreplace")
            for path, content in self._tree.items()
            if content is not None
        }
        files = {path: text.rstrip("\n") for path, text in texts.items()}
        return {"files": files, "folders": sorted(path for path, content in self._tree.items() if content is None)}

    def _sh(self, command: str) -> str:
        if self._left <= 0:
            raise Refused("no time left in this episode")
        begun = time.monotonic()
        try:
            ended = commands.run(command, self._tree, commands.Limits())
        except VerifierFailed as error:
            self._failure = error
            raise
        self._left -= time.monotonic() - begun
        if ended.tree is None:
            raise Refused(f"{ended.failure}: nothing is changed")
        self._tree = ended.tree
        output = shortened(ended.output, MOST_TEXT)
        return refusal(f"exit {ended.code}", output) if ended.code else output or NOTHING

    @staticmethod
    def check() -> None:
        """Raises UserError where commands can't be isolated on this machine."""
        commands.check()


def world(seed: str) -> dict[str, str | None]:
    """Texts by path, None for a folder: two folders of three texts, a log and a file `.tmp` in one of them.

    A text has two to seven lines of two words.
    """
    rng = random.Random(f"shell {seed}")
    folders, names = rng.sample(_FOLDERS, 2), rng.sample(_NAMES, 6)
    tree: dict[str, str | None] = dict.fromkeys(folders)
    for number, name in enumerate(names):
        lines = [f"{rng.choice(WORDS)} {rng.choice(WORDS)}" for _ in range(rng.randint(2, 7))]
        tree[f"{folders[number % 2]}/{name}.txt"] = "\n".join(lines) + "\n"
    lines = [f"{rng.choice(_MARKS)} {rng.randint(10, 99)}" for _ in range(rng.randint(4, 9))]
    tree[f"{folders[0]}/day{rng.randint(1, 30)}.log"] = "\n".join(lines) + "\n"
    tree[f"{folders[1]}/x{rng.randint(1, 30)}.tmp"] = "gone\n"
    return tree
