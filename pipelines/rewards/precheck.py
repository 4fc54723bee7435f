"""What reinforcement learning needs beside rows and models, checked in a moment and before anything is trained."""

from importlib.util import find_spec

from pipelines.config.schema import Config
from pipelines.environments.tools import environment_class
from pipelines.errors import UserError


def check(config: Config) -> None:
    """Raises UserError for a package or an environment that is missing, or what asynchronous rollouts can't do."""
    if config.grpo.asynchronous:
        _check_asynchronous(config)
    if config.grpo.trainer.get("use_vllm") and find_spec("vllm") is None:
        raise UserError(
            "grpo.trainer.use_vllm: vLLM is not installed; generate with transformers (use_vllm=false, and on a GPU "
            "+grpo.trainer.use_transformers_continuous_batching=true)"
        )
    if config.task.environment is not None:
        environment_class(config.task.environment)


def _check_asynchronous(config: Config) -> None:
    watch = config.grpo.watch
    missing = [name for name in ("vllm", "kernels") if find_spec(name) is None]
    refused = (
        (config.grpo.start != "base", "grpo.start", "trains a new adapter only; set grpo.start=base"),
        (config.task.environment, "task.environment", "can't hand its tools, made here, to another process"),
        (config.adapter.quantization, "adapter.quantization", "merges weights for vLLM, 4-bit ones can't be"),
        (config.task.audit and watch.audit_share, "grpo.watch.audit_share", "has no log of audits; set it to 0"),
        (watch.zero_variance.stop, "grpo.watch.zero_variance", "has no log of this share, so it can't stop the run"),
        (config.compute.device != "cuda", "compute.device", "needs a CUDA device and a vLLM server; choose compute="),
        (missing, "grpo.asynchronous", f"needs packages that are not installed: {', '.join(missing)}"),
    )
    for found, field, reason in refused:
        if found:
            raise UserError(f"{field}: asynchronous training {reason}")
