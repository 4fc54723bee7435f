"""The history of every alias move: versions of the registered model `NAME.moves`, one a move."""

from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

LEDGER = ".moves"


@dataclass(frozen=True)
class Move:
    """One move: versions by their numbers, None for nobody; `at` is UTC, ISO 8601; `valid` says that it counts."""

    number: int
    alias: str
    from_: str | None
    to: str | None
    kind: str
    by: str
    at: str
    run: str
    reason: str
    digest: str
    valid: bool


def history(name: str) -> list[Move]:
    """Every move of the aliases of a registered model, in the order in which they were written; empty without one."""
    client = MlflowClient()
    try:
        client.get_registered_model(f"{name}{LEDGER}")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    found = client.search_model_versions(f"name = '{name}{LEDGER}'")
    return [_move(int(one.version), dict(one.tags)) for one in sorted(found, key=lambda one: int(one.version))]


def _move(number: int, tags: dict[str, str]) -> Move:
    told = {field: tags.get(field, "") for field in ("alias", "kind", "by", "at", "run", "reason", "digest")}
    return Move(number, from_=tags.get("from") or None, to=tags.get("to") or None, valid=True, **told)
