"""alias -> the version that held it before."""

from pipelines.config.schema import Config


def act(config: Config) -> None:
    """Moves the alias back."""
    raise NotImplementedError
