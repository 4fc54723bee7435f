"""A model's architecture without its weights: shipped with the profile, or the config.json of its folder or the Hub."""

import json
from pathlib import Path
from typing import Any

from pipelines.config.paths import PROJECT, resolve
from pipelines.config.schema import Model
from pipelines.errors import UserError

SHIPPED = PROJECT / "pipelines/planning/architectures"


def settings_of(model: Model) -> dict[str, Any]:
    """transformers' configuration of the model, with the class that loads it as `architecture`.

    Raises UserError where no config.json can be reached, or where the model is code of others.
    """
    shipped = SHIPPED / f"{model.name}.json"
    if shipped.is_file() and not resolve(model.id).is_dir():
        return dict(json.loads(shipped.read_text(encoding="utf-8")))
    found = json.loads(_config_file(model).read_text(encoding="utf-8"))
    if "auto_map" in found:
        raise UserError(
            f"model.id: {model.id} is built by code of its own (auto_map in config.json), which is never run; "
            "choose a model whose architecture transformers has"
        )
    if not found.get("model_type"):
        raise UserError(f"model.id: the config.json of {model.id} names no model_type")
    return {
        **{name: value for name, value in found.items() if name != "architectures"},
        "architecture": model.architecture,
    }


def _config_file(model: Model) -> Path:
    folder = resolve(model.id)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model.id: {folder} holds no config.json")
        return folder / "config.json"
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(model.id, "config.json", revision=model.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ValueError) as error:
        raise UserError(
            f"model.id: no config.json of {model.id} can be read ({type(error).__name__}); set model.id to a folder "
            "that holds its config.json (no weights are needed), or choose a shipped profile"
        ) from None
