"""The optimizer of a trainer, by the block `optimizer`: what transformers has by name, LoRA+, Muon, QK-clip."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch.optim import AdamW, Optimizer
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy.muon import MuonWithAdamW, matrices_of
from pipelines.policy.qk_clip import QkClip

Maker = Callable[..., Optimizer]
# Whose optimizer transformers can only make with the model in hand.
OF_A_MODEL = ("galore", "apollo", "lomo")
STEPS = 100  # of a schedule that is tried out: any number does


def check(settings: TrainingArguments, field: str) -> None:
    """Raises UserError, before anything is loaded, for a schedule or an optimizer that can't be made."""
    trial = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.learning_rate)
    kwargs, schedule = settings.lr_scheduler_kwargs, SchedulerType(settings.lr_scheduler_type)
    try:
        get_scheduler(schedule, trial, 1, STEPS, scheduler_specific_kwargs=kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{field}.lr_scheduler_kwargs: {schedule.value} can't be made of {kwargs or {}}: {error}"
        ) from None
    if not any(name in settings.optim for name in OF_A_MODEL):
        try:
            Trainer.get_optimizer_cls_and_kwargs(settings)
        except (ImportError, ValueError) as error:
            raise UserError(f"{field}.optim: {_named(settings)}: {' '.join(str(error).split())}") from None


def attach(config: Config, trainer: Any) -> None:
    """Gives the trainer its optimizer; one that transformers makes by itself is left to it.

    Raises UserError where the adapter, the model or the way of distribution doesn't go with it.
    """
    asked = config.optimizer
    if asked.lora_plus_ratio is not None:
        if config.adapter.method != "lora":
            raise UserError(f"optimizer.lora_plus_ratio: {config.adapter.method} has no A and B, lora has")
        trainer.optimizer_cls_and_kwargs = (lambda: _lora_plus(trainer, asked.lora_plus_ratio), {})
    if asked.muon is not None:
        _check_whole_matrices(trainer)
        trainer.optimizer_cls_and_kwargs = (lambda: _muon(trainer, asked.muon.model_dump()), {})
    if asked.qk_clip is not None:
        trainer.add_callback(QkClip(trainer.model, config, asked.qk_clip.tau))


def _lora_plus(trainer: Any, ratio: float) -> Maker:
    """LoRA+ (Hayou et al. 2024): B, and vectors, at `ratio` times the learning rate of A."""

    def make(model: PeftModel) -> Optimizer:
        cls, settings = _plain(trainer, model, "optimizer.lora_plus_ratio")
        decay = trainer.args.weight_decay
        return create_loraplus_optimizer(model, cls, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **settings)

    return make


def _muon(trainer: Any, muon: dict[str, Any]) -> Maker:
    def make(model: PeftModel) -> Optimizer:
        cls, adamw = _plain(trainer, model, "optimizer.muon")
        if cls is not AdamW:
            raise UserError(
                f"optimizer.optim: {_named(trainer.args)}: with optimizer.muon the rest is AdamW's; take adamw_torch "
                "or adamw_torch_fused"
            )
        matrices = matrices_of(model)
        decayed = set(trainer.get_decay_parameter_names(model))
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for is_matrix, decays in ((True, True), (True, False), (False, True), (False, False)):
            found = [p for name, p in named if (name in matrices) == is_matrix and (name in decayed) == decays]
            if found:
                decay = trainer.args.weight_decay if decays else 0.0
                groups[is_matrix].append({"params": found, "weight_decay": decay})
        return MuonWithAdamW(groups[True], groups[False], {"lr": adamw["lr"], **muon}, adamw)

    return make


def _plain(trainer: Any, model: Any, field: str) -> tuple[type[Optimizer], dict[str, Any]]:
    """The class and settings that transformers would take. Raises UserError for one that isn't a plain class."""
    cls, settings = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    if (
        not isinstance(cls, type)
        or not issubclass(cls, Optimizer)
        or {"params", "model", "optimizer_dict"} & set(settings)
    ):
        raise UserError(f"{field}: {_named(trainer.args)} groups its parameters itself; take an AdamW")
    return cls, settings


def _named(settings: TrainingArguments) -> str:
    return OptimizerNames(settings.optim).value


def _check_whole_matrices(trainer: Any) -> None:
    for name, on in (("DeepSpeed", trainer.is_deepspeed_enabled), ("FSDP", trainer.is_fsdp_enabled)):
        if on:
            raise UserError(
                f"optimizer.muon: orthogonalises whole matrices, {name} gives each process a part of them; use ddp"
            )
