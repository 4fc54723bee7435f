"""Peak memory of a training step without a GPU: the real model code over fake tensors, storages counted.

Nothing is computed and no weight is read; what is counted is what autograd keeps alive. Tensors are fake ones of the
CPU, so attention is torch's CPU flash kernel, which keeps what the CUDA one keeps; NF4 weights are counted by the plan
and not simulated.
"""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Storages(TorchDispatchMode):
    """Bytes of all storages alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, torch.Tensor):
                self.count(value)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """Adds the tensor's storage unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@dataclass(frozen=True)
class Simulated:
    """Bytes of a second step: what stays between steps, what the forward pass leaves, and the peak."""

    steady: int
    after_forward: int
    peak: int

    @property
    def kept(self) -> int:
        """What the forward pass leaves for the backward pass."""
        return self.after_forward - self.steady


@contextmanager
def world() -> Iterator[Storages]:
    """A mode in which tensors are fake and counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), Storages() as storages:
        yield storages


def simulate(
    settings: Mapping[str, Any],
    peft: Any,
    shape: tuple[int, int],
    checkpointing: bool,
    head: str = "fused",
    bf16_adapter: bool = False,
) -> Simulated:
    """Two optimizer steps of LoRA over a bfloat16 base of transformers' `settings`, in fake memory.

    `shape` is (micro-batch, sequence length); `head` is stock (all logits), fused (TRL's tiles) or none;
    `bf16_adapter` keeps the adapter in the base's type, as TRL does over a quantised base.
    """
    with world() as storages:
        model = _model(settings, peft, checkpointing, head, bf16_adapter)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
        tokens = torch.ones(shape, dtype=torch.long)
        loss_of = LOSSES[head]
        found = None
        for _ in range(2):
            gc.collect()
            steady = storages.live
            storages.peak = steady
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, tokens)
            after = storages.live
            loss.backward()
            peak = storages.peak
            del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found = Simulated(steady, after, peak)
        assert found is not None
        return found


def _model(settings: Mapping[str, Any], peft: Any, checkpointing: bool, head: str, bf16_adapter: bool) -> Any:
    from pipelines.planning.injection import built, injected

    with unset_fake_temporarily(), torch.device("meta"):
        model = built(settings)
        if head == "fused":
            from trl.trainer.utils import add_fused_lm_head

            add_fused_lm_head(model)
        model = injected(model, peft)
    materialise(model, torch.bfloat16 if bf16_adapter else None)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    return model


def materialise(model: torch.nn.Module, trained: torch.dtype | None) -> None:
    """Parameters and buffers of the meta device become tensors of the mode in force; shared ones stay shared.

    `trained` is the type of what is trained; None leaves it as peft made it.
    """
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for owner in (module._parameters, module._buffers):
            for name, tensor in owner.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    dtype = trained if trained and tensor.requires_grad else tensor.dtype
                    fresh = torch.empty(tensor.shape, dtype=dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        fresh = torch.nn.Parameter(fresh, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = fresh
                owner[name] = made[id(tensor)]  # type: ignore[assignment]


def _stock(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def _fused(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=tokens, labels=tokens, fused_lm_head=True).loss
    return loss


def _headless(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    # The sum's gradient is one expanded number: no storage of its own.
    base = model.get_base_model()
    body = base.base_model
    if body is base:  # a wrapper with no body of its own, around a language model that has one
        body = base.language_model.model
    total: torch.Tensor = body(input_ids=tokens, use_cache=False).last_hidden_state.sum()
    return total


LOSSES: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "stock": _stock,
    "fused": _fused,
    "none": _headless,
}
