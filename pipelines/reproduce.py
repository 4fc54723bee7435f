"""version -> reproduce."""

from pipelines.config.schema import Config


def act(config: Config) -> None:
    """reproduce."""
    raise NotImplementedError
