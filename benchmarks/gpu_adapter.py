"""A cell of an adapter's way: saved, loaded over its base, merged into it."""

import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from benchmarks.gpu_cells import Call, Cell
from benchmarks.gpu_clock import now
from benchmarks.gpu_settings import base, lora


def handle(cell: Cell, side: str, call: Call, checkpointing: str, work: Path) -> dict[str, Any]:
    """Seconds to save, load and merge, once each, and how far the merged model's logits are from the adapter's."""
    model = base(cell, side, call)
    fresh = get_peft_model(model, lora(side))
    with torch.no_grad():  # a new adapter adds nothing, and merging nothing shows nothing
        for name, parameter in fresh.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.01)
    spent = {}
    folder = work / "adapter"
    spent["save_s"], _ = _timed(call, lambda: fresh.save_pretrained(str(folder)))
    bare = fresh.unload()
    spent["load_s"], loaded = _timed(call, lambda: PeftModel.from_pretrained(bare, str(folder)))
    before = _logits(loaded, call)
    spent["merge_s"], merged = _timed(call, loaded.merge_and_unload)
    change = float((_logits(merged, call) - before).abs().max() / before.abs().max())
    size = (folder / "adapter_model.safetensors").stat().st_size
    return {name: round(value, 3) for name, value in spent.items()} | {
        "adapter_mb": round(size / 1e6, 1),
        "merge_relative_change": round(change, 5),
    }


def _timed(call: Call, action: Any) -> tuple[float, Any]:
    now(call.device)
    begun = time.perf_counter()
    made = action()
    return now(call.device) - begun, made


def _logits(model: Any, call: Call) -> torch.Tensor:
    ids = torch.arange(10, 42, device=call.device)[None]
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits.float()
    return found
