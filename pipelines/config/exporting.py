"""The block of the stage export."""

from pipelines.config.block import Block, Text


class Export(Block):
    """Which version is written in other forms."""

    model: Text | None
