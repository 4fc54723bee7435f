"""The blocks of the stages that put a version behind an address."""

from pipelines.config.block import Block, Text


class Serve(Block):
    """Which version answers."""

    model: Text | None


class Deploy(Block):
    """Which version the files are for."""

    model: Text | None
