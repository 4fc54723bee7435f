"""Computes and writes the kept facts of shipped profiles: `python -m pipelines.planning.keep [profile ...]`.

To be run after a change to a profile, to conf/adapter/ or to the pinned transformers and peft; a test compares.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from pipelines.config.paths import CONF
from pipelines.config.schema import Adapter, Model
from pipelines.planning.architecture import SHIPPED, settings_of
from pipelines.planning.facts import KEPT, adapter_key, keeps_more, record_of
from pipelines.product import digest_of

RANKS = (8, 16, 64, 128)


def profile_of(name: str) -> Model:
    """A shipped profile, as its file says it."""
    return Model(**yaml.safe_load((CONF / f"model/{name}.yaml").read_text(encoding="utf-8")))


def adapter_of(name: str, model: Model, **peft: Any) -> Adapter:
    """A shipped adapter over a profile, with settings of peft changed."""
    values = yaml.safe_load((CONF / f"adapter/{name}.yaml").read_text(encoding="utf-8"))
    targets = model.targets.model_dump()
    for key, value in values["peft"].items():
        if isinstance(value, str) and value.startswith("${model.targets."):
            values["peft"][key] = targets[value[len("${model.targets.") : -1]]
    values["peft"] |= peft
    return Adapter(**values)


def adapters_over(model: Model) -> Iterator[tuple[str, Adapter]]:
    """All shipped adapters, LoRA at other ranks too and, of a mixture of experts, over its experts."""
    for path in sorted((CONF / "adapter").glob("*.yaml")):
        yield path.stem, adapter_of(path.stem, model)
    for rank in RANKS:
        yield f"lora r={rank}", adapter_of("lora", model, r=rank)
    if model.targets.target_parameters:
        yield "lora with experts", adapter_of("lora", model).model_copy(update={"train_experts": True})


def facts_record(model: Model) -> dict[str, Any]:
    """What the repository keeps of a profile, computed from the real code."""
    from pipelines.planning.computed import simulated
    from pipelines.planning.injection import counts_of, trainable_of

    settings = settings_of(model)
    adapters: dict[str, Any] = {}
    activations: dict[str, Any] = {}
    for name, adapter in adapters_over(model):
        key = adapter_key(adapter, model)
        if key not in adapters:
            adapters[key] = {"name": name, "parameters": trainable_of(settings, model, adapter)}
        if keeps_more(adapter) not in activations:
            activations[keeps_more(adapter)] = record_of(simulated(settings, model, adapter))
    return {
        "architecture": digest_of(dict(settings)),
        "counts": asdict(counts_of(settings)),
        "adapters": adapters,
        "activations": activations,
    }


def write(name: str, record: Mapping[str, Any]) -> None:
    """Writes one profile's file."""
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main(names: Sequence[str]) -> None:
    """All profiles with a shipped architecture, or those named."""
    for name in names or sorted(path.stem for path in SHIPPED.glob("*.json")):
        record = facts_record(profile_of(name))
        write(name, record)
        counts = record["counts"]
        print(f"{name}: {counts['total']:,} parameters, {record['adapters'].keys().__len__()} adapters", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
