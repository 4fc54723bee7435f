"""Base models: pinned to a revision, then loaded from exactly that."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.modelling import Adapter, Compute, Model
from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import resolve
from pipelines.errors import UserError
from pipelines.hub import commit_of
from pipelines.policy.template import ends_of
from pipelines.product import digest_of, file_hash, folder_files

COMMIT = re.compile(r"[0-9a-f]{40}")
LOCAL = "sha256:"
WEIGHTS = (".safetensors", ".json", ".jinja", ".txt", ".model")
GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
# (architecture, class that tokenizer_config.json names) -> class that AutoTokenizer takes.
LIGHT = {(kind, name): "PreTrainedTokenizerFast" for kind in ("qwen3", "qwen3_moe", "llama") for name in GENERIC} | {
    (kind, name): "Qwen2Tokenizer"
    for kind in ("qwen2", "qwen3", "qwen3_moe")
    for name in ("Qwen2Tokenizer", "Qwen2TokenizerFast")
}
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def pin(model: Model) -> Model:
    """The profile with `revision` resolved: a Hub commit, or the content hash of a local folder.

    Called once at the start of a run; every load afterwards uses what it returns. Raises UserError where the
    model isn't there or its weights are pickled, Unreachable where the Hub doesn't answer.
    """
    folder = local_folder(model)
    if folder is not None:
        return model.model_copy(update={"revision": LOCAL + content_hash(folder)})
    if model.revision and COMMIT.fullmatch(model.revision):
        return model
    return model.model_copy(
        update={"revision": commit_of("model", model.id, model.revision, "model.id", "model.revision")}
    )


def elsewhere(profile: Model, id: str, revision: str | None) -> Model:
    """The profile for a model that lies elsewhere: pinned, its architecture as the checkpoint says.

    `revision` is a Hub commit or a local folder's content, which is hashed anew.
    """
    from transformers import AutoConfig

    local = revision is not None and revision.startswith(LOCAL)
    model = pin(profile.model_copy(update={"id": id, "revision": None if local else revision}))
    found = AutoConfig.from_pretrained(**source(model)).architectures or [profile.architecture]
    return model.model_copy(update={"architecture": found[0]})


def local_folder(model: Model) -> Path | None:
    """The model's folder where `id` names one; None for a Hub id. Raises UserError for a path to nothing."""
    path = resolve(model.id)
    if path.is_dir():
        return path
    if model.id.startswith((".", "/", "~", "data/")) or model.id.count("/") != 1:
        raise UserError(f"model.id: {model.id!r} is neither a folder nor a Hub id (owner/name)")
    return None


def content_hash(folder: Path) -> str:
    """sha256 over the model's files. Raises UserError where weights are missing or pickled."""
    files = _hashed(folder)
    if not any(name.endswith(".safetensors") for name in files):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        found = f"; {pickled[0]} is pickled, which runs code when loaded, and is refused" if pickled else ""
        raise UserError(f"model.id: {folder} holds no .safetensors weights{found}")
    if "config.json" not in files:
        raise UserError(f"model.id: {folder} holds no config.json")
    return digest_of(files)


def files(model: Model) -> dict[str, str]:
    """Name -> sha256 of the files of a pinned model that is on this machine, those that loading it reads.

    Of a Hub model these are the ones in the Hub's cache at the pinned commit.
    """
    return _hashed(folder_of(model))


def folder_of(model: Model) -> Path:
    """Where a pinned model's files lie on this machine: its folder, or the Hub's cache."""
    folder = local_folder(model)
    if folder is not None:
        return folder
    config = _file(source(model), "config.json")
    if config is None:
        raise UserError(f"model.id: {model.id} holds no config.json")
    return Path(config).parent


def check_files(model: Model, expected: Mapping[str, str]) -> None:
    """Raises UserError naming the first file of the model that isn't the one that an adapter was trained on."""
    folder, where = local_folder(model), source(model)
    found = _hashed(folder) if folder is not None else {name: _hub_hash(where, name) for name in expected}
    for name in sorted({*expected, *found}):
        ours, theirs = expected.get(name), found.get(name)
        if ours != theirs:
            told = f"expected sha256 {ours or 'no such file'}, got {theirs or 'no such file'}"
            raise UserError(f"base model {model.id}: {name} isn't the file that was trained on: {told}")


def _hub_hash(where: Mapping[str, Any], name: str) -> str | None:
    path = _file(where, name)
    return file_hash(Path(path)) if path else None


def _hashed(folder: Path) -> dict[str, str]:
    return {name: value for name, value in folder_files(folder).items() if name.endswith(WEIGHTS)}


def source(model: Model) -> dict[str, Any]:
    """The arguments that make a `from_pretrained` call load the pinned files."""
    folder = local_folder(model)
    if folder is not None:
        return {"pretrained_model_name_or_path": str(folder), "trust_remote_code": False}
    return {"pretrained_model_name_or_path": model.id, "revision": model.revision, "trust_remote_code": False}


def load_tokenizer(model: Model) -> Any:
    """The base model's tokenizer. Raises UserError where it has no chat template."""
    return _tokenizer(model.id, source(model))


def load_template_tokenizer(model: Model) -> Any:
    """A tokenizer to render and count tokens with, as `load_tokenizer`'s, without importing torch where it can.

    AutoTokenizer imports torch; which class it would take is certain for the architectures in `LIGHT`.
    """
    where = source(model)
    settings = _json_file(where, "tokenizer_config.json")
    declared = (_json_file(where, "config.json").get("model_type"), settings.get("tokenizer_class"))
    if declared not in LIGHT or "auto_map" in settings or not _file(where, "tokenizer.json"):
        return load_tokenizer(model)
    import transformers

    return _checked(getattr(transformers, LIGHT[declared]).from_pretrained(**where), model.id)


def _json_file(where: Mapping[str, Any], name: str) -> dict[str, Any]:
    path = _file(where, name)
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return found


def _file(where: Mapping[str, Any], name: str) -> str | None:
    """The path of a model's file, from its folder or the Hub; None where it has none of that name."""
    from transformers.utils import cached_file

    found: str | None = cached_file(
        where["pretrained_model_name_or_path"],
        name,
        revision=where.get("revision"),
        _raise_exceptions_for_missing_entries=False,
    )
    return found


def load_tokenizer_from(adapter: Path) -> Any:
    """The tokenizer and chat template that an adapter was trained with."""
    return _tokenizer(str(adapter), {"pretrained_model_name_or_path": str(adapter), "trust_remote_code": False})


def _tokenizer(name: str, where: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return _checked(AutoTokenizer.from_pretrained(**where), name)


def _checked(tokenizer: Any, name: str) -> Any:
    if not tokenizer.chat_template:
        raise UserError(f"model.id: the tokenizer of {name} has no chat template; use an instruct model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(model: Model, adapter: Adapter, compute: Compute) -> Any:
    """The pinned base model on the configured device, quantised where the adapter asks for it.

    Raises UserError where the machine can't run it, where the checkpoint's class isn't the profile's, or where
    its files leave a weight unset.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    from pipelines.compute.strategy import device_map, storage
    from pipelines.policy.adapter import check_hardware, keep_differentiable, quantization_config
    from pipelines.policy.moe import quantize_experts

    check_hardware(adapter, compute)
    transformers.utils.logging.disable_progress_bar()
    settings = AutoConfig.from_pretrained(**source(model))
    published = settings.to_dict().get("quantization_config")
    base, report = _architecture(model, settings.architectures or []).from_pretrained(
        **source(model),
        use_safetensors=True,
        dtype=getattr(torch, compute.dtype),
        attn_implementation=compute.attn_implementation,
        quantization_config=quantization_config(adapter, published, storage(compute)),
        device_map=device_map(compute),
        output_loading_info=True,
    )
    if report["missing_keys"]:
        name = sorted(report["missing_keys"])[0]
        raise UserError(f"model.id: the files of {model.id} lack {len(report['missing_keys'])} weights, such as {name}")
    quantize_experts(base, model, adapter.quantization)
    keep_differentiable(base)
    return base


def _architecture(model: Model, found: list[str]) -> Any:
    """The class that the profile names and the checkpoint confirms."""
    import transformers

    cls = getattr(transformers, model.architecture, None)
    if cls is None:
        known = [name for name in dir(transformers) if name.endswith(("ForCausalLM", "ForConditionalGeneration"))]
        guess = did_you_mean(model.architecture, known)
        raise UserError(f"model.architecture: transformers has no {model.architecture}{guess}")
    if model.architecture not in found:
        raise UserError(f"model.architecture: expected {model.architecture}, {model.id} says {', '.join(found)}")
    return cls


def template_switches(model: Model) -> dict[str, Any]:
    """What the chat template is told, such as whether to think."""
    thinking = model.chat.thinking
    return {thinking.switch: thinking.value} if thinking else {}


def end_tokens(model: Model, tokenizer: Any) -> list[int]:
    """Every token that ends a turn, by the checkpoint's generation settings and its tokenizer."""
    from transformers import AutoConfig, GenerationConfig

    where = source(model)
    name = where["pretrained_model_name_or_path"]
    try:
        settings = GenerationConfig.from_pretrained(name, revision=where.get("revision"))
    except OSError:  # the checkpoint has none of its own
        settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(**where))
    return ends_of(settings, tokenizer)
