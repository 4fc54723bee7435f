"""What a trainer really trains with, as a resume must find it again; what was asked for is in `pipelines.contract`."""

import json
from pathlib import Path
from typing import Any

from pipelines.product import digest_of, folder_files

NAMES = (
    "trainer",
    "compute.strategy",
    "compute.num_processes x compute.num_nodes",
    "tokenizer",
    "adapter: its parameters",
    "adapter: its start",
)


def in_force(trainer: Any, start: Path) -> dict[str, Any]:
    """`NAMES` with their values: the trainable parameters by shape, and the untrained adapter where one was kept."""
    parameters = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    # ZeRO-3 leaves an empty tensor in a parameter's place, and its shape beside it.
    shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in parameters}
    values = (
        type(trainer).__name__,
        strategy(trainer),
        int(trainer.args.world_size),
        tokenizer_digest(trainer.processing_class),
        digest_of(shapes),
        digest_of(folder_files(start)) if start.exists() else None,
    )
    return dict(zip(NAMES, values, strict=True))


def strategy(trainer: Any) -> str:
    """How the processes share the work: none, ddp, zero1 to zero3, fsdp1, fsdp2."""
    state = trainer.accelerator.state
    kind = trainer.accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        return f"zero{state.deepspeed_plugin.zero_stage}"
    if kind == "FSDP":
        return f"fsdp{state.fsdp_plugin.fsdp_version}"
    return "ddp" if trainer.args.world_size > 1 else "none"


def tokenizer_digest(processor: Any) -> str:
    """sha256 over vocabulary, rules, special tokens and chat template; padding and truncation are a batch's matter."""
    tokenizer = getattr(processor, "tokenizer", processor)
    rules = tokenizer.get_vocab()
    if hasattr(tokenizer, "backend_tokenizer"):
        read = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {name: value for name, value in read.items() if name not in ("padding", "truncation")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return digest_of([rules, special, tokenizer.chat_template])
