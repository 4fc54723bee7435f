"""No mistake in a shipped file is composed without a word, and every key of every file is tried."""

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from benchmarks.mutations import GENERATORS_OWN, Mutation, copy, misspell, mutations, run
from benchmarks.outside import OUTSIDE, pattern_of
from pipelines.config import upstream
from pipelines.config.block import Block, License, Quantization
from pipelines.config.compose import compose
from pipelines.config.paths import CONF
from pipelines.config.schema import Config, SourceFields, SubjectFields
from pipelines.config.validate import OWNED
from pipelines.errors import UserError

ALL = list(mutations())
# A prime, so that the sample steps through files, keys and kinds alike.
EVERY = 53
# What a user's own names stand below: they can't be misspelled.
OWN = (
    *(("sources",), ("rules",), ("compare",), ("exports",), ("subjects",)),
    *(("harness", "data"), ("harness", "data", "gsm8k")),
)
BOUNDS = ("enum", "pattern", "minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum", "maximum")


def keys_of(node: yaml.Node | None) -> int:
    """How many keys a document has, the words of a `defaults` list counted in."""
    if isinstance(node, yaml.MappingNode):
        deeper = [(key, value) for key, value in node.value if key.value != GENERATORS_OWN]
        return len(node.value) + sum(keys_of(value) + words_of(key, value) for key, value in deeper)
    return sum(keys_of(item) for item in node.value) if isinstance(node, yaml.SequenceNode) else 0


def words_of(key: yaml.Node, value: yaml.Node) -> int:
    return sum(isinstance(item, yaml.ScalarNode) for item in value.value) if key.value == "defaults" else 0


def bounded(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of the fields that have a range or a choice, `*` for a user's own names."""
    for part in (node, *node.get("anyOf", [])):
        if "$ref" in part:
            yield from bounded(schema, schema["$defs"][part["$ref"].rpartition("/")[2]], path)
        if path and any(bound in part for bound in BOUNDS):
            yield path
        for name, inner in part.get("properties", {}).items():
            yield from bounded(schema, inner, f"{path}.{name}".lstrip("."))
        if isinstance(inner := part.get("additionalProperties"), dict):
            yield from bounded(schema, inner, f"{path}.*")


def failures(given: list[Mutation]) -> str:
    with copy() as conf:
        outcomes = [conf.apply(mutation) for mutation in given]
    return "\n".join(f"{o.mutation}: {o.fault}: {o.message}" for o in outcomes if not o.refused)


def test_every_key_of_every_file_is_misspelled_and_retyped() -> None:
    for path in sorted(CONF.rglob("*.yaml")):
        file = path.relative_to(CONF).as_posix()
        tried = {m.keys for m in ALL if m.file == file and m.kind == "wrong type"}
        assert len(tried) == keys_of(yaml.compose(path.read_text(encoding="utf-8"))), file
        misspelled = {m.keys for m in ALL if m.file == file and m.kind == "misspelled"}
        own = {keys for keys in tried if keys[:-1] in OWN}
        assert misspelled == tried - own, file


def test_every_bound_of_the_schema_has_a_value_outside_it() -> None:
    schema = Config.model_json_schema()
    names = set(bounded(schema, schema))
    assert {"seed", "task.sources.*.limit", "gate.rules.*.bound", "adapter.quantization.bnb_4bit_quant_type"} <= names
    assert names <= OUTSIDE.keys()


def is_choice(kind: object) -> bool:
    return any(get_origin(member) is Literal for member in (kind, *get_args(kind)))


def test_every_bound_of_upstream_that_is_shipped_has_a_value_outside_it() -> None:
    for path in {mutation.path for mutation in ALL if mutation.kind == "wrong type"}:
        block, _, name = path.rpartition(".")
        chosen = block in OWNED and any(is_choice(upstream.fields(cls).get(name)) for cls in upstream.SOURCES)
        ranged = block in OWNED and name in upstream.RANGES
        assert not (chosen or ranged) or pattern_of(path), path


def test_every_value_outside_is_tried() -> None:
    tried = {pattern_of(mutation.path) for mutation in ALL if mutation.kind == "outside"}
    assert tried | OPTIONAL.keys() == OUTSIDE.keys()
    assert not tried & OPTIONAL.keys()


NAMES = {
    "sources.*": "sources.banking77_train",
    "subjects.*": "subjects.champion",
    "benchmarks.*": "benchmarks.mine",
    "exports.*": "exports.mine",
    "adapters.*": "adapters.mine",
}


def named(pattern: str) -> str:
    """The pattern with a name in the star's place."""
    return next((pattern.replace(star, name) for star, name in NAMES.items() if star in pattern), pattern)


TEACHERS_OWN: dict[str, type[Block]] = {"license": License, "quantization": Quantization}
# Fields that no shipped file sets: sources and subjects leave them to their file of defaults, and a user's own names.
OPTIONAL = {
    pattern: named(pattern)
    for pattern in (
        *(f"task.sources.*.{field}" for field in SourceFields.model_fields),
        *(f"evaluate.subjects.*.{field}" for field in SubjectFields.model_fields),
        "prepare.contamination.benchmarks.*.path",
        "prepare.contamination.benchmarks.*.fields",
        "prepare.heldout.shares.*",
        "gate.exports.*.max_loss",
        "gate.exports.*.reason",
        "serve.adapters.*",
        "model.remote_code.revision",
        "model.remote_code.reason",
        *(f"teacher.{block}.{field}" for block, model in TEACHERS_OWN.items() for field in model.model_fields),
    )
    if pattern in OUTSIDE and pattern not in {pattern_of(mutation.path) for mutation in ALL}
}


@pytest.mark.parametrize("pattern", OPTIONAL)
def test_what_no_file_sets_is_refused_on_the_command_line(pattern: str) -> None:
    path = OPTIONAL[pattern].replace("shares.*", "shares")
    value = {"a": OUTSIDE[pattern], "b": 0.5} if path.endswith("shares") else OUTSIDE[pattern]
    plus = (
        "+"
        if "benchmarks" in path or path.startswith(("teacher.", "gate.exports", "serve.", "model.remote_code"))
        else ""
    )
    given = f"{plus}{path}={json.dumps(value) if isinstance(value, str | list) else str(value).replace(chr(39), '')}"
    with pytest.raises(UserError) as caught:
        compose([given])
    lines = [line for line in str(caught.value).splitlines() if line.startswith(path)]
    assert any("expected" in line and line.endswith("(in the command line)") for line in lines), str(caught.value)


def test_a_misspelling_is_no_valid_name() -> None:
    assert misspell("to", ["to", "model"]) == "tto"
    assert misspell("path", ["path"]) == "ptah"
    assert misspell("abc", ["acb"]) == "aabc"


def test_a_sample_is_refused() -> None:
    assert failures(ALL[::EVERY]) == ""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # each composes anew, which costs Hydra a seventh of a second
def test_all_are_refused() -> None:
    outcomes = run(ALL)
    assert [(str(o.mutation), o.fault, o.message) for o in outcomes if not o.refused] == []
    assert len(outcomes) == len(ALL)
