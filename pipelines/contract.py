"""What a training was asked to be, setting by setting: what may not change between a checkpoint and a resume."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from pipelines.config.schema import Config
from pipelines.product import Product
from pipelines.stages import Stage
from pipelines.tracking.run import flatten

# Names, places, watching, the speed of a machine: with another value of these, training comes to the same. What is read
# from the trainer itself (processes, strategy) and what the trainer's settings repeat is not asked for twice.
FREE = (
    "*.name",
    "model.license*",
    "model.chat.notes",
    "model.context_length",
    "model.learning_rate",
    "model.targets.*",
    "compute.memory_gb",
    "compute.eval_batch_size",
    "compute.*_batch_size",
    "compute.*_accumulation_steps",
    "compute.gradient_checkpointing",
    "compute.num_processes",
    "compute.num_nodes",
    "compute.strategy",
    "compute.rendezvous*",
    "task.sources.*",
    "task.labels",
    "task.decline_label",
    "task.instruction",
    "task.card",
    "task.red_team",
    "verifier.*",
    "teacher.api_key",
    "teacher.concurrency",
    "teacher.timeout_s",
    "teacher.retries",
    "teacher.patience_s",
    "teacher.price_*",
    "teacher.spending_limit",
    "teacher.cache",
    "teacher.license*",
    "sft.audit.*",
    "grpo.show.*",
    "*.watch.*",
    "grpo.recipe",
    "distill.recipe",
    *(f"{stage}.{name}" for stage in ("sft", "grpo", "distill") for name in ("rows", "adapter", "generated")),
    *(
        f"*.trainer.{name}"
        for name in (
            "save_*",
            "log_*",
            "logging_*",
            "per_device_eval_batch_size",
            "eval_accumulation_steps",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "torch_empty_cache_steps",
            "ddp_timeout",
            "run_name",
            "vllm_server_*",
            "vllm_gpu_memory_utilization",
        )
    ),
)


def terms(stage: Stage, config: Config, inputs: Mapping[str, Product]) -> dict[str, Any]:
    """Dotted name -> value of all that decides what `stage` trains, its inputs by content.

    Of rows counts what is trained and validated on.
    """
    asked = flatten(config.model_dump(mode="json", include=set(stage.blocks)))
    decides = {name: value for name, value in asked.items() if not any(fnmatchcase(name, free) for free in FREE)}
    return {"stage": stage.name, **decides, **_contents(inputs)}


def _contents(inputs: Mapping[str, Product]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, given in inputs.items():
        digests = given.about.get("digests")
        if isinstance(digests, Mapping):
            found |= {f"{kind}: {split}": digests[split] for split in ("train", "validation") if split in digests}
        else:
            found[kind] = given.digest
    return found
