"""Base models: pinned to a revision, then loaded from exactly that."""

import re
from pathlib import Path
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import resolve
from pipelines.config.schema import Adapter, Compute, Model
from pipelines.errors import Unreachable, UserError
from pipelines.policy.chat import ends_of
from pipelines.product import digest_of, folder_files

COMMIT = re.compile(r"[0-9a-f]{40}")
LOCAL = "sha256:"
WEIGHTS = (".safetensors", ".json", ".jinja", ".txt", ".model")
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
    return model.model_copy(update={"revision": _hub_commit(model)})


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
    files = {name: value for name, value in folder_files(folder).items() if name.endswith(WEIGHTS)}
    if not any(name.endswith(".safetensors") for name in files):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        found = f"; {pickled[0]} is pickled, which runs code when loaded, and is refused" if pickled else ""
        raise UserError(f"model.id: {folder} holds no .safetensors weights{found}")
    if "config.json" not in files:
        raise UserError(f"model.id: {folder} holds no config.json")
    return digest_of(files)


def _hub_commit(model: Model) -> str:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(model.id, revision=model.revision, timeout=20)
    except RepositoryNotFoundError:
        raise UserError(f"model.id: the Hub has no model {model.id!r}, or it needs a login") from None
    except RevisionNotFoundError:
        raise UserError(f"model.revision: {model.id} has no revision {model.revision!r}") from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise Unreachable(f"model.id: can't ask the Hub for {model.id}: {_first_line(error)}") from None
    if not info.sha:
        raise UserError(f"model.revision: the Hub names no commit for {model.id}@{model.revision}")
    return str(info.sha)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def source(model: Model) -> dict[str, Any]:
    """The arguments that make a `from_pretrained` call load the pinned files."""
    folder = local_folder(model)
    if folder is not None:
        return {"pretrained_model_name_or_path": str(folder), "trust_remote_code": False}
    return {"pretrained_model_name_or_path": model.id, "revision": model.revision, "trust_remote_code": False}


def load_tokenizer(model: Model) -> Any:
    """The base model's tokenizer. Raises UserError where it has no chat template."""
    return _tokenizer(model.id, source(model))


def load_tokenizer_from(adapter: Path) -> Any:
    """The tokenizer and chat template that an adapter was trained with."""
    return _tokenizer(str(adapter), {"pretrained_model_name_or_path": str(adapter), "trust_remote_code": False})


def _tokenizer(name: str, where: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**where)
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

    from pipelines.policy.adapter import check_hardware, keep_differentiable, quantization_config

    check_hardware(adapter, compute)
    transformers.utils.logging.disable_progress_bar()
    settings = AutoConfig.from_pretrained(**source(model))
    published = settings.to_dict().get("quantization_config")
    base, report = _architecture(model, settings.architectures or []).from_pretrained(
        **source(model),
        use_safetensors=True,
        dtype=getattr(torch, compute.dtype),
        attn_implementation=compute.attn_implementation,
        quantization_config=quantization_config(adapter, published),
        device_map={"": 0} if compute.device == "cuda" else None,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        name = sorted(report["missing_keys"])[0]
        raise UserError(f"model.id: the files of {model.id} lack {len(report['missing_keys'])} weights, such as {name}")
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
