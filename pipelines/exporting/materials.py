"""What forms are made of: the merged model and the bare base as folders, made once and only where one asks for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.exporting import gguf
from pipelines.exporting.merging import EXACT, bare, merged, write


@dataclass(frozen=True)
class Version:
    """A version's settings, its adapter's folder and tokenizer."""

    settings: Mapping[str, Any]
    adapter: Path
    tokenizer: Any


class Materials:
    """Folders below `work`; `dtype` is that of the weights that are handed on or quantised.

    GGUF files are made from float32, so that they are rounded once.
    """

    def __init__(self, version: Version, dtype: str, work: Path) -> None:
        self.version, self.dtype, self.work = version, dtype, work

    @cached_property
    def merged(self) -> Path:
        """The merged model in `dtype`."""
        return self.exact if self.dtype == EXACT else self._merged(self.dtype)

    @cached_property
    def exact(self) -> Path:
        """The merged model in float32."""
        return self._merged(EXACT)

    @cached_property
    def base(self) -> Path:
        """The base that the adapter was trained on, in float32."""
        folder = self.work / "base"
        write(bare(self.version.settings, self.version.adapter), self.version.tokenizer, EXACT, folder)
        return folder

    @cached_property
    def f16(self) -> Path:
        """The merged model as a GGUF file in F16."""
        target = self.work / gguf.F16
        gguf.convert(self.exact, target)
        return target

    def _merged(self, dtype: str) -> Path:
        folder = self.work / f"merged-{dtype}"
        write(merged(self.version.settings, self.version.adapter), self.version.tokenizer, dtype, folder)
        return folder
