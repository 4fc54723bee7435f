"""version -> serve."""

from pipelines.config.schema import Config


def act(config: Config) -> None:
    """serve."""
    raise NotImplementedError
