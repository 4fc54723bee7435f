"""version -> lineage."""

from pipelines.config.schema import Config


def act(config: Config) -> None:
    """lineage."""
    raise NotImplementedError
