"""What a pod needs: from the counts that `plan` works with, the memory of weights, cache and programs."""

import math
from dataclasses import dataclass

from pipelines.config.schema import Config
from pipelines.planning.architecture import settings_of
from pipelines.planning.facts import Counts, kept_facts
from pipelines.planning.memory import CONTEXT, GIB, WIDTH, Job, weight_bytes

PROGRAMS = 2 * GIB  # of Python, torch and MLflow in the pod's two processes: 1.3 GiB on a CPU, and room
SPARE = 1.2  # of all that is counted


@dataclass(frozen=True)
class Needs:
    """Bytes of a pod's memory, and the GPUs with the bytes that the model takes on each."""

    memory: float
    gpus: int
    on_gpus: float

    @property
    def memory_gib(self) -> int:
        """As a manifest asks for it."""
        return math.ceil(self.memory / GIB)


def needs(config: Config) -> Needs:
    """Of the configured base with its adapter, `deploy.concurrency` requests at once under vLLM, else one."""
    held = _held(config, *_counted(config))
    if config.compute.device != "cuda":
        return Needs(SPARE * (held + PROGRAMS), 0, 0.0)
    # While it is loaded the checkpoint passes through the machine's memory, shard by shard.
    memory = SPARE * (PROGRAMS + min(held, 16 * GIB))
    whole = SPARE * held + CONTEXT
    card = (config.compute.memory_gb or math.inf) * GIB
    gpus = 1
    while whole / gpus > card and gpus < 8:
        gpus *= 2
    return Needs(memory, gpus, whole)


def _counted(config: Config) -> tuple[Counts, int]:
    """The base's counts, and the adapter's parameters: kept, or from the architecture, without a training's memory."""
    settings = settings_of(config.model)
    if found := kept_facts(config.model, config.adapter, settings):
        return found.counts, found.trainable
    from pipelines.planning.injection import counts_of, trainable_of

    return counts_of(settings), trainable_of(settings, config.model, config.adapter)


def _held(config: Config, counts: Counts, trainable: int) -> float:
    """Weights, adapter, and the keys and values of whole contexts."""
    width = WIDTH[config.compute.dtype]
    weights = weight_bytes(counts, Job(1, 1, False, config.compute.dtype, config.adapter.quantization))
    requests = config.deploy.concurrency if config.deploy.engine == "vllm" else 1
    return weights + 4 * trainable + requests * config.model.context_length * counts.kv_width * width
