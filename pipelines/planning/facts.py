"""What a plan knows of an architecture: counts, and what a layer keeps for its backward pass. No model code here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.config.paths import PROJECT
from pipelines.config.schema import Adapter, Model
from pipelines.product import digest_of

KEPT = PROJECT / "pipelines/planning/kept"
# Fields of `adapter.peft` that change no shape.
SHAPELESS = ("lora_alpha", "init_lora_weights", "lora_dropout", "use_rslora", "feedforward_modules", "bias")


@dataclass(frozen=True)
class Counts:
    """Parameters of the base model, and widths.

    `linear` are the weights that bitsandbytes quantises, `experts` the fused 3-D ones of which `active_experts` work on
    a token; `kv_width` is the number of cached values of a token in all layers, `attention_width` that of attention's
    output in all layers; `largest_layer` counts what a sharding strategy gathers at once, `largest_linear` one weight.
    """

    total: int
    linear: int
    embedding: int
    head: int
    experts: int
    active_experts: int
    layers: int
    hidden: int
    vocabulary: int
    kv_width: int
    attention_width: int
    largest_layer: int
    largest_linear: int

    @property
    def active(self) -> int:
        """Parameters that work on a token, as makers count them."""
        return self.total - self.experts + self.active_experts


@dataclass(frozen=True)
class Curve:
    """Bytes as constant + batch x (linear x length + square x length^2); each part at least 0."""

    constant: float
    linear: float
    square: float

    def at(self, batch: int, length: int) -> float:
        """Bytes at `batch` sequences of `length` tokens."""
        return self.constant + batch * (self.linear * length + self.square * length * length)

    @staticmethod
    def through(points: Sequence[tuple[int, float]]) -> "Curve":
        """The curve through three points (length, bytes) at batch 1.

        What rounds to under 2 % of the last value is dropped: noise must not be extrapolated.
        """
        (x0, y0), (x1, y1), (x2, y2) = points
        square = ((y2 - y1) / (x2 - x1) - (y1 - y0) / (x1 - x0)) / (x2 - x0)
        if square * x2 * x2 < 0.02 * y2:
            square = 0.0
        rest = [y - square * x * x for x, y in points]
        linear = (rest[2] - rest[0]) / (x2 - x0)
        constant = rest[2] - linear * x2
        if constant < 0.02 * y2:
            constant, linear = 0.0, rest[2] / x2
        return Curve(round(constant), round(linear, 3), round(square, 6))


@dataclass(frozen=True)
class Activations:
    """Of one step: kept of each layer, needed beside it while a layer runs backward, and kept once."""

    saved: Curve
    extra: Curve
    fixed: Curve


@dataclass(frozen=True)
class Facts:
    """All of one architecture with one adapter; `kept` says whether they were read, not computed."""

    counts: Counts
    trainable: int
    activations: Activations
    kept: bool


def adapter_key(adapter: Adapter, model: Model) -> str:
    """Names what decides how many parameters an adapter has over a profile."""
    shape = {name: value for name, value in adapter.peft.items() if name not in SHAPELESS}
    parameters = model.targets.target_parameters if adapter.train_experts else []
    return digest_of({"method": adapter.method, "peft": shape, "experts": parameters})[:12]


def keeps_more(adapter: Adapter) -> str:
    """Which of the kept activations an adapter has: by its number format, DoRA's norms, and experts of its own."""
    kind = "bfloat16" if adapter.quantization is not None else "float32"
    dora = "+dora" if adapter.peft.get("use_dora") else ""
    return f"{kind}{dora}{'+experts' if adapter.train_experts else ''}"


def kept_facts(model: Model, adapter: Adapter, settings: Mapping[str, Any]) -> Facts | None:
    """The facts that the repository ships for this profile, architecture and adapter; None where it has none."""
    path = KEPT / f"{model.name}.json"
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    trainable = kept["adapters"].get(adapter_key(adapter, model))
    activations = kept["activations"].get(keeps_more(adapter))
    if kept["architecture"] != digest_of(dict(settings)) or trainable is None or activations is None:
        return None
    return Facts(Counts(**kept["counts"]), trainable["parameters"], activations_of(activations), kept=True)


def activations_of(record: Mapping[str, Any]) -> Activations:
    """Activations from what `record_of` wrote."""
    return Activations(*(Curve(**record[name]) for name in ("saved", "extra", "fixed")))


def record_of(activations: Activations) -> dict[str, Any]:
    """Activations as JSON holds them."""
    return asdict(activations)
