"""JSON that a program reads: strict values, how they compare, and JSON Schemas that fetch nothing."""

from dataclasses import dataclass
from typing import Any

from pipelines.config.paths import read_text
from pipelines.dataset.strict_json import Decoder, json_reason, kind
from pipelines.errors import UserError


@dataclass(frozen=True, slots=True)
class NotJson:
    """A text that is no JSON value, and why."""

    reason: str


def parse(text: str) -> Any:
    """The text as one strict JSON value, white space around it aside; NotJson where it is none."""
    decoder = Decoder()
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        return NotJson(json_reason(error))
    return NotJson(decoder.problem) if decoder.problem else value


def same(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal: numbers by value (true is no 1), the order of keys aside."""
    # A stack: values may be nested as deep as the decoder goes, which is deeper than functions can call.
    waiting = [(first, second)]
    while waiting:
        left, right = waiting.pop()
        if kind(left) != kind(right):
            return False
        if isinstance(left, dict):
            if left.keys() != right.keys():
                return False
            waiting.extend((left[name], right[name]) for name in left)
        elif isinstance(left, list):
            if len(left) != len(right):
                return False
            waiting.extend(zip(left, right, strict=True))
        elif left != right:
            return False
    return True


def validator(path: str, field: str) -> Any:
    """The schema in the file as jsonschema's validator; the draft is the one that `$schema` names, else 2020-12.

    Raises UserError naming `field` where the file is missing, no JSON, no valid schema, or refers to one outside of it.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing.jsonschema import EMPTY_REGISTRY

    schema = _read_schema(path, field)
    found = validator_for(schema, default=Draft202012Validator)
    try:
        found.check_schema(schema)
    except SchemaError as error:
        place = "".join(f"/{part}" for part in error.absolute_path)
        reason = f"{place and f'{place}: '}{error.message}"
        raise UserError(f"{field}: {path}: no valid JSON schema: {reason}") from error
    _check_references(path, field, schema, found)
    # A registry that fetches nothing: a schema must not open connections.
    return found(schema, registry=EMPTY_REGISTRY)


def _read_schema(path: str, field: str) -> Any:
    schema = parse(read_text(path, field))
    if isinstance(schema, NotJson):
        raise UserError(f"{field}: {path}: {schema.reason}")
    if not isinstance(schema, dict | bool):
        raise UserError(f"{field}: {path}: {kind(schema)}, expected an object that is a JSON schema")
    return schema


def _check_references(path: str, field: str, schema: Any, validator: Any) -> None:
    """Follows every `$ref`, so that none fails only at the answer that reaches it."""
    from referencing import Specification
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY, specification_with

    dialect = validator.META_SCHEMA.get("$schema", "")
    root = specification_with(dialect, default=Specification.OPAQUE).create_resource(schema)

    def follow(resource: Any, resolver: Any) -> None:
        held = resource.contents if isinstance(resource.contents, dict) else {}
        for reference in (held[name] for name in ("$ref", "$dynamicRef") if isinstance(held.get(name), str)):
            try:
                resolver.lookup(reference)
            except Unresolvable as error:
                raise UserError(
                    f"{field}: {path}: $ref {reference!r} leads to nothing in the file; "
                    "schemas elsewhere aren't fetched"
                ) from error
        for part in resource.subresources():
            follow(part, resolver.in_subresource(part))

    follow(root, EMPTY_REGISTRY.resolver_with_root(root))
