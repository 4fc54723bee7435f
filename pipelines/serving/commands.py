"""The commands by which other servers start on a version's adapter, with the flags that each documents."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.schema import Adapter, Model

# As documented: SGLang's server arguments, text-generation-launcher 3's.
SGLANG = (
    "--model-path",
    "--revision",
    "--tokenizer-path",
    "--chat-template",
    "--dtype",
    "--enable-lora",
    "--lora-paths",
    "--max-lora-rank",
    "--max-loras-per-batch",
    "--host",
    "--port",
)
TGI = (
    "--model-id",
    "--revision",
    "--lora-adapters",
    "--tokenizer-config-path",
    "--dtype",
    "--quantize",
    "--hostname",
    "--port",
)
TGI_DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Released:
    """A version as its commands name it: `adapter` is the folder beside the file that holds them."""

    name: str
    uri: str
    model: Model
    adapter: Adapter
    dtype: str
    rank: int
    port: int
    folder: str = "adapter"


def sglang(version: Released) -> list[str]:
    """SGLang with the adapter by its name."""
    return [
        *("python", "-m", "sglang.launch_server", "--model-path", version.model.id, *_revision(version)),
        *("--tokenizer-path", version.folder, "--chat-template", f"{version.folder}/chat_template.jinja"),
        *("--dtype", version.dtype, "--enable-lora", "--lora-paths", f"{version.name}={version.folder}"),
        *("--max-lora-rank", str(version.rank), "--max-loras-per-batch", "2"),
        *("--host", "127.0.0.1", "--port", str(version.port)),
    ]


def tgi(version: Released) -> list[str]:
    """Text Generation Inference; a request names the adapter as its `model`."""
    dtype = ["--dtype", version.dtype] if version.dtype in TGI_DTYPES else []
    quantized = ["--quantize", "bitsandbytes-nf4"] if version.adapter.quantization else []
    return [
        *("text-generation-launcher", "--model-id", version.model.id, *_revision(version)),
        *("--lora-adapters", f"{version.name}={version.folder}"),
        *("--tokenizer-config-path", f"{version.folder}/tokenizer_config.json"),
        *(quantized or dtype),
        *("--hostname", "127.0.0.1", "--port", str(version.port)),
    ]


def mlflow(version: Released) -> list[str]:
    """MLflow's own scoring server, straight from the registry, unverified: `serve engine=mlflow` checks first."""
    command = ["mlflow", "models", "serve", "-m", version.uri, "--env-manager", "local", "-h", "127.0.0.1"]
    return [*command, "-p", str(version.port)]


def _revision(version: Released) -> Sequence[str]:
    """Of the Hub; a folder's content has none."""
    revision = str(version.model.revision)
    return () if revision.startswith("sha256:") else ("--revision", revision)


def page(version: Released, vllm: Sequence[str], started: Mapping[str, str]) -> str:
    """commands.md: `vllm` is its whole command, `started` what a user types for image and cluster."""
    question = {"model": version.name, "temperature": 0, "messages": [{"role": "user", "content": "..."}]}
    where = f"http://127.0.0.1:{version.port}/v1/chat/completions"
    serve = ["python", "-m", "pipelines", "serve", f"model={version.uri}"]
    parts = [
        f"# {version.uri}\n",
        f"Base {version.model.id} at {version.model.revision}; LoRA of rank {version.rank}, verified, in `adapter/`.",
        "Paths are seen from this folder. Only `serve` verifies files and compares answers with those recorded.\n",
        _block("Verified and smoke-tested, following its alias", [*serve, "engine=transformers"]),
        _block("The same behind vLLM", [*serve, "engine=vllm"]),
        _block("MLflow's scoring server", mlflow(version)),
        _block("vLLM by itself", vllm),
        _block("SGLang", sglang(version)),
        _block("Text Generation Inference", tgi(version)),
        f"## A question\n\n```sh\ncurl {where} -H 'Content-Type: application/json' -d {_quoted(question)}\n```\n",
        "## Image and cluster\n\n```sh\n" + "\n".join(started.values()) + "\n```\n",
    ]
    return "\n".join(parts)


def _block(title: str, words: Sequence[str]) -> str:
    return f"## {title}\n\n```sh\n{shlex.join(words)}\n```\n"


def _quoted(value: Any) -> str:
    return shlex.quote(json.dumps(value))
