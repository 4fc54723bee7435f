"""Facts of an architecture computed from the real code: counted by injection, activations simulated."""

import copy
from collections.abc import Mapping
from typing import Any

from pipelines.config.schema import Adapter, Model
from pipelines.planning.facts import Activations, Curve, Facts

LENGTHS = (512, 1024, 2048)


def computed_facts(settings: Mapping[str, Any], model: Model, adapter: Adapter) -> Facts:
    """As `kept_facts`, for what the repository doesn't keep."""
    from pipelines.planning.injection import counts_of, trainable_of

    trainable = trainable_of(settings, model, adapter)
    return Facts(counts_of(settings), trainable, simulated(settings, model, adapter), kept=False)


def simulated(settings: Mapping[str, Any], model: Model, adapter: Adapter) -> Activations:
    """What layers keep, from one and two of them at three lengths; prompt methods are taken as LoRA."""
    from pipelines.planning.simulation import simulate
    from pipelines.policy.adapter import peft_config

    lora = adapter if adapter.method == "lora" else _as_lora(adapter, model)
    bf16 = adapter.quantization is not None
    saved, extra, fixed = [], [], []
    for length in LENGTHS:
        one, two = (
            simulate(with_layers(settings, number), peft_config(lora, model), (1, length), False, "none", bf16)
            for number in (1, 2)
        )
        layer = two.kept - one.kept
        saved.append((length, float(layer)))
        extra.append((length, float(two.peak - two.after_forward)))
        fixed.append((length, float(max(one.kept - layer, 0))))
    return Activations(*(Curve.through(points) for points in (saved, extra, fixed)))


def _as_lora(adapter: Adapter, model: Model) -> Adapter:
    targets = {"target_modules": model.targets.target_modules, "exclude_modules": model.targets.exclude_modules}
    return adapter.model_copy(update={"method": "lora", "peft": {"r": 32, **targets}})


def with_layers(settings: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The same architecture with that many layers, of the kind that most of its layers are."""
    made = copy.deepcopy(dict(settings))
    text = made.get("text_config", made)
    text["num_hidden_layers"] = number
    text.pop("layer_types", None)
    text.pop("mlp_layer_types", None)
    text.pop("indexer_types", None)
    text.pop("max_window_layers", None)
    if "first_k_dense_replace" in text:
        text["first_k_dense_replace"] = 0
    return made
