"""The block of the stage package."""

from pipelines.config.block import Block, Text


class Package(Block):
    """The registered model's name and the products it is made of."""

    adapter: Text | None
    scores: Text | None
    registered_model: Text
