"""FSDP2 between processes without an accelerator.

accelerate turns FSDP on for multi-GPU-like states only, and on a CPU trains plain DDP without a word. The real FSDP2
path runs on gloo once the state calls itself one. For tests and for trying a configuration out; no GPU run comes here.
"""

import os


def allow() -> None:
    """To be called before the first TrainingArguments."""
    from accelerate.state import DistributedType, PartialState

    def backend(*_: object, **__: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = backend
