"""How processes share a training: begun, passed to the trainer, compared with what is really in force, gathered."""

import copy
import os
from collections.abc import Collection
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipelines.compute import ranks
from pipelines.config.modelling import Adapter, Compute
from pipelines.config.strategy import STAGES
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.config.schema import Config  # the whole of it, which a registered version leaves behind

SHARDED = ("zero3", "fsdp2")  # no process holds all weights
DROPPED = ("ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")  # accelerate's, which overrule ours


def begin(compute: Compute) -> None:
    """Joins the processes' group, before the first TrainingArguments; alone, nothing happens.

    Raises UserError where another number of processes was started than the configuration asks for, or a package is
    missing.
    """
    asked = compute.num_processes * compute.num_nodes
    if ranks.world_size() != asked:
        raise UserError(
            f"compute.num_processes: {compute.num_processes} on each of {compute.num_nodes} nodes were asked for, the "
            f"launcher started {ranks.world_size()} in all"
        )
    check_package(compute)
    if not ranks.started():
        return
    for name in DROPPED:
        os.environ.pop(name, None)
    backend, wait = _backend(compute), timedelta(seconds=compute.rendezvous.timeout_s)
    if compute.strategy in STAGES:
        _begin_deepspeed(compute, backend, wait)
    elif compute.strategy == "fsdp2" and compute.device == "cpu":
        from pipelines.compute.gloo_fsdp import allow

        allow()
    import torch.distributed

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, timeout=wait)


def _backend(compute: Compute) -> str:
    if compute.device == "cpu":
        return "gloo"
    import torch

    torch.cuda.set_device(ranks.local_rank())
    return "nccl"


def check_package(compute: Compute) -> None:
    """Raises UserError where DeepSpeed is asked for and isn't installed."""
    if compute.strategy in STAGES and find_spec("deepspeed") is None:
        raise UserError(f"compute.strategy: {compute.strategy} needs the package deepspeed (the extra `distributed`)")


def _begin_deepspeed(compute: Compute, backend: str, wait: timedelta) -> None:
    """DeepSpeed has to know of the group itself: transformers' CPU branch leaves it with a world of one."""
    if compute.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    # Between CPUs it would compile a shared-memory backend first: a minute and a half, and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, timeout=wait, verbose=False)


def trainer_arguments(compute: Compute) -> dict[str, Any]:
    """What `transformers.TrainingArguments` is told."""
    told: dict[str, Any] = {"ddp_timeout": compute.rendezvous.timeout_s}
    if compute.deepspeed is not None:
        told["deepspeed"] = copy.deepcopy(dict(compute.deepspeed))
    if compute.fsdp is not None:
        told |= {"fsdp": True, "fsdp_config": copy.deepcopy(dict(compute.fsdp))}
    return told


def device_map(compute: Compute) -> dict[str, int] | None:
    """Where a base is loaded: whole on this process' device, or left to the strategy that shares it out."""
    shared_out = ranks.started() and compute.strategy in SHARDED
    return {"": ranks.local_rank()} if compute.device == "cuda" and not shared_out else None


def storage(compute: Compute) -> str | None:
    """The type that holds 4-bit weights: FSDP2 shares out floating-point ones only, of one type with the rest."""
    return compute.dtype if ranks.started() and compute.strategy == "fsdp2" else None


def check_supported(stages: Collection[str], config: "Config") -> None:
    """Raises UserError for what a strategy can't train or save, by the field."""
    _check_adapter(config.adapter, config.compute.strategy)
    check_package(config.compute)
    compute = config.compute
    if compute.num_processes * compute.num_nodes > 1 and config.grpo.asynchronous and "grpo" in stages:
        raise UserError("grpo.asynchronous: trains in one process; set compute.num_processes=1 and compute.num_nodes=1")
    if compute.strategy in SHARDED and config.grpo.pass_rate.samples is not None and "grpo" in stages:
        raise UserError(
            f"grpo.pass_rate.samples: answers before training need whole weights, which compute.strategy "
            f"{compute.strategy} leaves in no process; set it to null"
        )


def _check_adapter(adapter: Adapter, strategy: str) -> None:
    if strategy not in SHARDED:
        return
    if adapter.method in ("prefix_tuning", "p_tuning"):
        raise UserError(f"compute.strategy: {strategy} trains lora and ia3 adapters, not {adapter.method}")
    if str(adapter.peft.get("init_lora_weights", "")).startswith(("pissa", "olora")):
        raise UserError(
            f"adapter.peft.init_lora_weights: {adapter.peft['init_lora_weights']} needs whole weights, which "
            f"compute.strategy {strategy} leaves in no process; use ddp, zero1 or zero2"
        )


def check_in_force(trainer: Any) -> None:
    """Compares processes and strategy with what was asked, once the trainer is built.

    accelerate drops DeepSpeed and FSDP without a word in some set-ups, and others start processes that know nothing
    of one another; all of them end with a plausible loss. Raises RuntimeError naming both sides.
    """
    strategy, asked = trainer.args.asked
    accelerator = trainer.accelerator
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    allowed = {"fsdp2": {"FSDP"}, "ddp": {"MULTI_GPU", "MULTI_CPU"} if asked > 1 else {"NO", "MULTI_GPU", "MULTI_CPU"}}
    problems = []
    if accelerator.num_processes != asked:
        problems.append(f"{asked} processes, got {accelerator.num_processes}")
    if kind not in allowed.get(strategy, {"DEEPSPEED"}):
        problems.append(f"strategy {strategy}, got {kind}")
    elif strategy in STAGES and (stage := accelerator.state.deepspeed_plugin.zero_stage) != STAGES[strategy]:
        problems.append(f"strategy {strategy}, got ZeRO stage {stage}")
    elif strategy == "fsdp2":
        problems += _fsdp_problems(trainer)
    if problems:
        raise RuntimeError(f"the training asked for {'; for '.join(problems)}")


def _fsdp_problems(trainer: Any) -> list[str]:
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2 or "FULL" not in str(plugin.state_dict_type):
        return [f"FSDP 2 with full state dicts, got {plugin.fsdp_version} with {plugin.state_dict_type}"]
    whole = [
        name
        for name, parameter in trainer.model.named_parameters()
        if hasattr(parameter, "quant_state") and not parameter.is_floating_point()
    ]
    return [f"a 4-bit base that FSDP can share out, got {whole[0]} in whole numbers"] if whole else []


def trained_state(model: Any) -> dict[str, Any]:
    """Every trainable parameter by name, whole, on the CPU. All ranks have to call it: they hold shards of it."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[name] = _whole(parameter)
    return found


def _whole(parameter: Any) -> Any:
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()
    if hasattr(parameter, "full_tensor"):
        return parameter.detach().full_tensor().cpu()
    return parameter.detach().cpu()
