"""Which of several processes this one is, as the launcher's environment says, and what they tell one another."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "ranks"  # below a stage's work folder: what belongs to a process alone


def rank() -> int:
    """This process among all, from 0; 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its node, which is also its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """All processes, those of every node."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that talks, logs and leaves the product."""
    return rank() == 0


def started() -> bool:
    """Whether a launcher of several processes started this one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def own(work: Path) -> Path:
    """Where this process works: rank 0 in `work` itself, others in a scratch folder below it."""
    return work if is_main() else work / FOLDER / str(rank())


def shared(work: Path) -> Path:
    """The folder that all ranks share, of what `own` gave this one."""
    return work if is_main() else work.parents[1]


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.barrier()


def from_main(function: Callable[..., Any], *given: Any) -> Any:
    """What rank 0 gets from the function, in every rank."""
    found = [function(*given)] if is_main() else [None]
    if world_size() > 1:
        import torch.distributed

        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def highest(value: int) -> int:
    """The highest of all ranks' values, in every rank."""
    if world_size() == 1:
        return value
    import torch

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    held = torch.tensor(value, device=device)
    torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX)
    return int(held)
