"""What can be asked of an export, and what an export tells while it works. Imports nothing that is slow to load."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from nemotrt.bundle import CacheLayout, Decoder, ExportRecord, Frontend
from nemotrt.errors import UsageError
from nemotrt.export.encoder_config import AS_TRAINED, ModelChoices

Progress = Callable[[str], None]

OPSETS = range(18, 24)
"""LayerNormalization came with 17, Split's num_outputs with 18; every runtime we target reads 18."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        components: by name; none: those that nemotrt decodes with.
        decoder: in place of ``components``: those of this decoder only.
        choices: where the checkpoint leaves a choice.
        cache: what the streaming encoder keeps of the frames before a chunk.
        cache_drop: encoder frames at the end of a chunk that it does not keep: the next chunk brings them again.
        fixed_seconds: every axis of fixed size: one clip, of this length; ``None``: any sizes.
        opset: ONNX opset version of the graphs.
        frontend: what makes the graphs: nemotrt itself, or NeMo in a process of its own.

    Raises:
        UsageError: an opset that is not written, or two options that contradict each other.
    """

    components: tuple[str, ...] = ()
    decoder: Decoder | None = None
    choices: ModelChoices = AS_TRAINED
    cache: CacheLayout = "inputs"
    cache_drop: int = 0
    fixed_seconds: float | None = None
    opset: int = OPSETS[0]
    frontend: Frontend = "native"

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(
                "this opset is not written", found=self.opset, fix=f"choose from {OPSETS[0]} to {OPSETS[-1]}"
            )
        if self.components and self.decoder is not None:
            raise UsageError(
                "components and a decoder were both named",
                found=f"{', '.join(self.components)}; {self.decoder}",
                fix="name one or the other: a decoder stands for the components that it needs",
            )

    def model_choices(self) -> ModelChoices:
        """``choices``, with no more positions than a clip of fixed length has."""
        if self.fixed_seconds is None or self.choices.max_seconds is not None:
            return self.choices
        return replace(self.choices, max_seconds=self.fixed_seconds)

    def record(self) -> ExportRecord:
        """The same, as the bundle keeps it."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "choices"}
        return ExportRecord(**own, **asdict(self.choices))


DEFAULTS = ExportOptions()


@dataclass(frozen=True)
class NemoProcess:
    """The interpreter that has NeMo, and the device that its modules are traced on."""

    python: Path = Path(sys.executable)
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class Needs:
    """What the export is going to take, before it begins: memory of the whole process, disk of what is written."""

    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class TakenOver:
    """Components that an export which died had finished; they are not written again."""

    components: tuple[str, ...]


@dataclass(frozen=True)
class Alive:
    """The export took a step: a tensor was written, say."""


Notice = Needs | TakenOver | Alive
OnNotice = Callable[[Notice], None]
