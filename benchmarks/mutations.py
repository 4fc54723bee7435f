"""Every key of every file of `conf/`, misspelled, of a wrong type and out of range: each must be refused.

`python -m benchmarks.mutations` prints how many were, and each that wasn't. Keys that are a user's own names
(a source, a rule) can't be misspelled; what is below them can.
"""

import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.outside import OUTSIDE, pattern_of
from pipelines.config.compose import compose
from pipelines.config.paths import CONF
from pipelines.config.validate import valid_keys
from pipelines.errors import UserError

Keys = tuple[str | int, ...]
Kind = Literal["misspelled", "wrong type", "outside"]
OWN_NAMES = (
    "task.sources",
    "gate.rules",
    "gate.compare",
    "gate.exports",
    "evaluate.subjects",
    "evaluate.harness.data",
    "evaluate.harness.data.gsm8k",
)


# Its names and values are a generator's, which looks at them itself.
GENERATORS_OWN = "settings"


@dataclass(frozen=True)
class Mutation:
    """One change of one file: `new` is the misspelled key, or the value in the right one's place."""

    file: str
    keys: Keys
    kind: Kind
    new: Any

    @property
    def path(self) -> str:
        """The dotted name that the refusal has to begin with."""
        keys = (*self.keys[:-1], self.new) if self.kind == "misspelled" else self.keys
        # An entry of the `defaults` list is known by its group; one that is no group, by the list.
        return ".".join([*_package(self.file), *(str(key) for key in keys if not isinstance(key, int))])

    def __str__(self) -> str:
        return f"conf/{self.file} {'.'.join(map(str, self.keys))} {self.kind}: {self.new!r}"


@dataclass(frozen=True)
class Outcome:
    """Whether a mutation was refused in a readable way; `fault` says what was wanting, `message` what was said."""

    mutation: Mutation
    message: str
    fault: str

    @property
    def refused(self) -> bool:
        return not self.fault


def files() -> list[str]:
    """Every file of `conf/`, relative to it."""
    return sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))


def mutations() -> Iterator[Mutation]:
    """Every mutation of every file, in the files' order."""
    for file in files():
        for keys, value in _entries(_read(CONF / file)):
            yield from _of_entry(file, keys, value)


def _of_entry(file: str, keys: Keys, value: object) -> Iterator[Mutation]:
    block = ".".join([*_package(file), *map(str, keys[:-1])])
    if block not in OWN_NAMES:
        # An entry of `defaults` that stands alone is its own key.
        name = str(value if isinstance(keys[-1], int) else keys[-1])
        yield Mutation(file, keys, "misspelled", misspell(name, valid_keys(block, _method(file))))
    yield Mutation(file, keys, "wrong type", 3 if isinstance(keys[-1], int) else wrong_type(value))
    given = Mutation(file, keys, "outside", None)
    if pattern := pattern_of(given.path):
        yield replace(given, new=OUTSIDE[pattern])


def misspell(name: str, valid: Sequence[str]) -> str:
    """Two neighbouring letters swapped, or one doubled where that gives another valid name."""
    swapped = [name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(1, len(name) - 1)]
    doubled = [name[: i + 1] + name[i:] for i in range(len(name))]
    return next(wrong for wrong in (*swapped, *doubled) if wrong != name and wrong not in valid)


def wrong_type(value: object) -> object:
    """A mapping for text or a list, text for a number or a mapping, a number for true or false, true for null."""
    if value is None or isinstance(value, bool):
        return True if value is None else 1
    return "many" if isinstance(value, int | float | dict) else {"a": "mapping"}


def _entries(node: dict[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in node.items():
        yield (*above, key), value
        if isinstance(value, dict) and key != GENERATORS_OWN:
            yield from _entries(value, (*above, key))
        elif (*above, key) == ("defaults",):
            for number, entry in enumerate(value):
                inner = _entries(entry, ("defaults", number)) if isinstance(entry, dict) else ()
                yield from inner or [(("defaults", number), entry)]


def _package(file: str) -> tuple[str, ...]:
    """The block that a file fills: its `# @package`, or the group it is in."""
    header = (CONF / file).read_text(encoding="utf-8").partition("\n")[0]
    if header.startswith("# @package "):
        named = header.removeprefix("# @package ").strip()
        return () if named == "_global_" else (named,)
    return tuple(file.split("/")[:-1])


def _method(file: str) -> dict[str, Any]:
    if file.startswith("distillation/"):
        return _read(CONF / file)
    return {"adapter": _read(CONF / file)} if file.startswith("adapter/") else {}


def _read(path: Path) -> dict[str, Any]:
    """A file with its required values given: `???` would be refused for itself."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8").replace("???", "data/given.csv"))
    return content


class Copy:
    """A copy of `conf/`, in which mutations are made and undone one by one."""

    def __init__(self, folder: Path) -> None:
        self.conf = folder / "conf"
        shutil.copytree(CONF, self.conf)

    def apply(self, mutation: Mutation) -> Outcome:
        """Composes and validates the mutated copy with the file chosen."""
        path = self.conf / mutation.file
        before = path.read_text(encoding="utf-8")
        header = "".join(line for line in before.splitlines(keepends=True)[:1] if line.startswith("# @package"))
        path.write_text(header + yaml.safe_dump(_mutated(_read(path), mutation), sort_keys=False), encoding="utf-8")
        try:
            return _judge(mutation, self.conf)
        finally:
            path.write_text(before, encoding="utf-8")


@contextmanager
def copy() -> Iterator[Copy]:
    """A copy that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Copy(Path(folder))


def _mutated(content: dict[str, Any], mutation: Mutation) -> dict[str, Any]:
    node: Any = content
    for key in mutation.keys[:-1]:
        node = node[key]
    last = mutation.keys[-1]
    if mutation.kind != "misspelled" or isinstance(last, int):
        node[last] = mutation.new
        return content
    renamed = {mutation.new if key == last else key: value for key, value in node.items()}
    node.clear()
    node.update(renamed)
    return content


def _judge(mutation: Mutation, conf: Path) -> Outcome:
    group, _, choice = mutation.file.removesuffix(".yaml").rpartition("/")
    try:
        compose([f"{group}={choice}"] if group else [], conf)
    except UserError as error:
        return Outcome(mutation, str(error), _fault(mutation, str(error)))
    except Exception as error:  # noqa: BLE001 - a traceback is what is looked for
        return Outcome(mutation, f"{type(error).__name__}: {error}", "not a UserError")
    return Outcome(mutation, "", "accepted")


def _fault(mutation: Mutation, message: str) -> str:
    """What a refusal leaves out: the field, what was expected, the right name, the file."""
    # What is outside may be one entry of a list or a mapping, which the line names.
    begins = (f"{mutation.path}: ", f"{mutation.path}.") if mutation.kind == "outside" else f"{mutation.path}: "
    line = next((line for line in message.splitlines() if line.startswith(begins)), None)
    if line is None:
        return f"no line on {mutation.path}"
    wanted = [f"(in conf/{mutation.file})", "expected "]
    if mutation.kind == "misspelled":
        wanted[1:] = [f"nearest valid name: {_right_name(mutation)} "]
    return ", ".join(f"no {text!r}" for text in wanted if text not in line)


def _right_name(mutation: Mutation) -> str:
    last = mutation.keys[-1]
    if isinstance(last, str):
        return last
    entries = _read(CONF / mutation.file)["defaults"]
    return str(entries[last])


def run(given: Sequence[Mutation]) -> list[Outcome]:
    """All outcomes, in order, from as many processes as there are cores."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = math.ceil(len(given) / workers)
    parts = [given[start : start + size] for start in range(0, len(given), size)]
    with multiprocessing.get_context("spawn").Pool(len(parts)) as pool:
        return [outcome for part in pool.map(_run_part, parts) for outcome in part]


def _run_part(given: Sequence[Mutation]) -> list[Outcome]:
    with copy() as folder:
        return [folder.apply(mutation) for mutation in given]


def main() -> None:
    """Prints counts and every failure; exit code 1 where there is one."""
    started = time.monotonic()
    outcomes = run(list(mutations()))
    failures = [outcome for outcome in outcomes if not outcome.refused]
    for outcome in failures:
        print(f"{outcome.mutation}\n  {outcome.fault}\n  {outcome.message}")
    for kind, count in Counter(outcome.mutation.kind for outcome in outcomes).items():
        print(f"{kind:<12}{count:>6}")
    print(f"{len(outcomes)} mutations of {len(files())} files, {len(failures)} not refused", end="")
    print(f", in {time.monotonic() - started:.0f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
