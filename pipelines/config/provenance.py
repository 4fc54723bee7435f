"""The blocks of the stages that look at where a version came from."""

from pipelines.config.block import Block, Text


class Reproduce(Block):
    """Which version is made again."""

    model: Text | None


class Lineage(Block):
    """Whose chain is shown."""

    model: Text | None
