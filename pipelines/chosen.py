"""The version that a command is about: the one that its block names, or what this configuration made."""

from pipelines.config.schema import Config
from pipelines.policy.base import pin
from pipelines.stages import STAGES, gather
from pipelines.tracking import registry
from pipelines.tracking.registry import Version


def chosen(config: Config, uri: str | None, field: str) -> Version:
    """Raises UserError where there is none; `field` is the one that names it."""
    if uri is not None:
        return registry.find(uri, field)
    without = config.promote.model_copy(update={"model": None})
    own = config.model_copy(update={"model": pin(config.model), "promote": without})
    return registry.named(None, field, gather(STAGES["promote"], own)["version"].about)
