"""Base models: pinned to a revision, then loaded from exactly that."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import pickled
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
CODE = (".py",)  # of a checkpoint, which is part of it only where the profile names it


def pin(model: Model) -> Model:
    """The profile with `revision` resolved: a Hub commit, or the content hash of a local folder.

    Called once at the start of a run; every load afterwards uses what it returns. Raises UserError where the
    model isn't there, its weights are pickled, or the code that the profile names isn't that of this revision;
    Unreachable where the Hub doesn't answer.
    """
    folder = local_folder(model)
    if folder is not None:
        revision = LOCAL + content_hash(folder, _trusts(model))
    elif model.revision and COMMIT.fullmatch(model.revision):
        revision = model.revision
    else:
        revision = commit_of("model", model.id, model.revision, "model.id", "model.revision")
    pinned = model.model_copy(update={"revision": revision})
    _check_code(pinned)
    return pinned


def _trusts(model: Model) -> bool:
    """Whether code that a checkpoint brings may run: where the profile names it, by revision and with a reason."""
    return model.remote_code is not None


def _check_code(model: Model) -> None:
    """Raises UserError where the code that the profile names is another revision's, or partly elsewhere."""
    if model.remote_code is None:
        return
    if model.remote_code.revision != model.revision:
        raise UserError(
            f"model.remote_code.revision: {model.remote_code.revision} was read, but {model.id} is at "
            f"{model.revision}; read the code of that one and name it"
        )
    for name in ("config.json", "tokenizer_config.json"):
        for place in _flat(_json_file(source(model), name).get("auto_map", {})):
            if "--" in place:
                elsewhere = place.partition("--")[0]
                raise UserError(f"model.remote_code: {name} takes code from {elsewhere}, whose revision nothing pins")


def _flat(auto_map: Mapping[str, Any]) -> list[str]:
    """The places of code that a checkpoint's `auto_map` names; of a tokenizer there are two, or none of them."""
    held = [value if isinstance(value, list) else [value] for value in auto_map.values()]
    return [place for places in held for place in places if place]


@contextlib.contextmanager
def _own_code_told(name: str) -> Iterator[None]:
    """One readable line where transformers would have to run code that a checkpoint brings."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"model.id: {name} needs code of its own, which is not run; read it, then name its revision and why in the "
            "profile: model.remote_code={revision: ..., reason: ...}"
        ) from None


def elsewhere(profile: Model, id: str, revision: str | None) -> Model:
    """The profile for a model that lies elsewhere: pinned, its architecture as the checkpoint says.

    `revision` is a Hub commit or a local folder's content, which is hashed anew.
    """
    from transformers import AutoConfig

    local = revision is not None and revision.startswith(LOCAL)
    named = profile.remote_code if id == profile.id else None  # the code of one model says nothing of another's
    given = {"id": id, "revision": None if local else revision, "remote_code": named}
    model = pin(profile.model_copy(update=given))
    with _own_code_told(id):
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


def content_hash(folder: Path, code: bool = False) -> str:
    """sha256 over the model's files, with the `code` it brings where that runs.

    Raises UserError where weights are missing or pickled.
    """
    files = _hashed(folder, code)
    if not any(name.endswith(".safetensors") for name in files):
        instead = next(pickled.pickled(folder), None)
        found = f"; {instead.name} is pickled, which runs code when loaded, and is refused" if instead else ""
        raise UserError(f"model.id: {folder} holds no .safetensors weights{found}")
    if "config.json" not in files:
        raise UserError(f"model.id: {folder} holds no config.json")
    return digest_of(files)


def files(model: Model) -> dict[str, str]:
    """Name -> sha256 of the files of a pinned model that is on this machine, those that loading it reads.

    Of a Hub model these are the ones in the Hub's cache at the pinned commit.
    """
    return _hashed(folder_of(model), _trusts(model))


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
    found = (
        _hashed(folder, _trusts(model)) if folder is not None else {name: _hub_hash(where, name) for name in expected}
    )
    for name in sorted({*expected, *found}):
        ours, theirs = expected.get(name), found.get(name)
        if ours != theirs:
            told = f"expected sha256 {ours or 'no such file'}, got {theirs or 'no such file'}"
            raise UserError(f"base model {model.id}: {name} isn't the file that was trained on: {told}")


def _hub_hash(where: Mapping[str, Any], name: str) -> str | None:
    path = _file(where, name)
    return file_hash(Path(path)) if path else None


def _hashed(folder: Path, code: bool) -> dict[str, str]:
    kept = (*WEIGHTS, *CODE) if code else WEIGHTS
    return {name: value for name, value in folder_files(folder).items() if name.endswith(kept)}


def source(model: Model) -> dict[str, Any]:
    """The arguments that make a `from_pretrained` call load the pinned files."""
    folder = local_folder(model)
    if folder is not None:
        return {"pretrained_model_name_or_path": str(folder), "trust_remote_code": _trusts(model)}
    return {"pretrained_model_name_or_path": model.id, "revision": model.revision, "trust_remote_code": _trusts(model)}


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


def load_tokenizer_from(adapter: Path, model: Model | None = None) -> Any:
    """The tokenizer and chat template that an adapter was trained with; `model` names its code, if it has some."""
    trusts = model is not None and _trusts(model)
    return _tokenizer(str(adapter), {"pretrained_model_name_or_path": str(adapter), "trust_remote_code": trusts})


def load_adapter(base: Any, folder: Path, is_trainable: bool = False) -> Any:
    """The base with the adapter of a folder on it. Raises UserError where that holds pickled or no weights."""
    from peft import PeftModel

    pickled.check(folder, f"the adapter in {folder}")
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"the adapter in {folder}: expected adapter_model.safetensors, found none")
    return PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)


def _tokenizer(name: str, where: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    with _own_code_told(name):
        return _checked(AutoTokenizer.from_pretrained(**where), name)


def _checked(tokenizer: Any, name: str) -> Any:
    if not tokenizer.chat_template:
        raise UserError(f"model.id: the tokenizer of {name} has no chat template; use an instruct model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def _weights_told(name: str) -> Iterator[None]:
    """One readable line where a model on the Hub has no safetensors: what it has instead is pickled."""
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise UserError(
            f"model.id: {name} has no .safetensors weights; pickled ones run code and are refused"
        ) from None


def load_base(model: Model, adapter: Adapter, compute: Compute) -> Any:
    """The pinned base model on the configured device, quantised where the adapter asks for it.

    Raises UserError where the machine can't run it, where the checkpoint's class isn't the profile's, where it needs
    code of its own that the profile doesn't name, or where its files leave a weight unset.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    from pipelines.compute.strategy import device_map, storage
    from pipelines.policy.adapter import check_hardware, keep_differentiable, quantization_config
    from pipelines.policy.moe import quantize_experts

    check_hardware(adapter, compute)
    transformers.utils.logging.disable_progress_bar()
    with _own_code_told(model.id):
        settings = AutoConfig.from_pretrained(**source(model))
    published = settings.to_dict().get("quantization_config")
    with _weights_told(model.id):
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

    cls = getattr(transformers, model.architecture, transformers.AutoModelForCausalLM if _trusts(model) else None)
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
