"""Secrets written out in a configuration, which would be kept with every run: refused by the name of their field."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipelines import secrets
from pipelines.errors import UserError
from pipelines.secret_kinds import MASK

# The last part of a field's name -> where its secret belongs.
INSTEAD = {
    "url": "write url: env:NAME instead",
    "at": "use api_key: env:NAME",
    "api_key": "write api_key: env:NAME instead",
    "uri": "set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, instead",
    "env": "name it among engine.secrets instead",
}
OTHERWISE = "leave it in the environment"


def check(container: Mapping[str, Any], origin: Callable[[str], str]) -> None:
    """Raises UserError with a line for each field that holds a secret, or what a record has in place of one."""
    held = list(_texts(container, ""))
    everything = "\n".join(text for _, text in held)
    if secrets.found(everything) is None and MASK not in everything:
        return
    lines = []
    for key, text in held:
        if (kind := secrets.found(text)) is not None:
            instead = next((INSTEAD[part] for part in reversed(key.split(".")) if part in INSTEAD), OTHERWISE)
            shown = secrets.masked(key)
            lines.append(f"{shown}: it holds {kind}, which would be kept with every run; {instead} (in {origin(key)})")
        elif MASK in text:
            lines.append(f"{key}: a secret was taken out here when this was recorded; set the value (in {origin(key)})")
    if lines and (run_id := os.environ.get("MLFLOW_RUN_ID")):
        lines.append(
            f"`mlflow run` has recorded the overrides in run {run_id} before they were read; where they hold the "
            "secret, delete that run (mlflow gc --run-ids) and revoke it"
        )
    if lines:
        raise UserError("\n".join(lines))


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text of a configuration, keys too, with the dotted key where it stands."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{path}.{key}".lstrip("."), str(key)
            yield from _texts(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value, path)
    elif isinstance(node, str):
        yield path, node
