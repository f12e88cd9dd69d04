"""Which components an export writes: what was asked for, of what the model can have.

nothing    what nemotrt decodes with
a decoder  those of it that this decoder needs
names      these, and for a variant the component whose weights it shares; ``all``: every one
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from nemotrt.bundle import ComponentName, Decoder
from nemotrt.errors import UsageError
from nemotrt.export.components import VARIANT_OF
from nemotrt.export.config import ModelConfig
from nemotrt.export.options import ExportOptions

ALL = "all"
"""In place of component names: every one that the model has."""

_OF_TRANSDUCERS: tuple[ComponentName, ...] = ("preprocessor", "encoder", "encoder_nomask", "predictor", "joint")
_OF_DECODER: Mapping[Decoder, tuple[ComponentName, ...]] = MappingProxyType(
    {"ctc": ("preprocessor", "ctc", "ctc_nomask"), "rnnt": _OF_TRANSDUCERS, "tdt": _OF_TRANSDUCERS}
)


def chosen_components(
    options: ExportOptions, config: ModelConfig, available: Collection[ComponentName], *, origin: Path
) -> tuple[ComponentName, ...]:
    """The names of ``available`` to write, in that order.

    Raises:
        UsageError: a component or decoder that the model does not have, or a choice for a cache without one.
    """
    unknown = [name for name in options.components if name not in (*available, ALL)]
    if unknown:
        raise UsageError(
            f"the model has no component {unknown[0]!r}",
            where=origin,
            fix=f"choose from: {', '.join((*available, ALL))}",
        )
    wanted = options.components or _decoding(options.decoder, config, origin)
    if (options.cache != "inputs" or options.cache_drop) and not {"encoder_streaming", ALL} & set(wanted):
        raise UsageError(
            "something was chosen for a cache, but nothing that has a cache is exported",
            where=origin,
            found=f"components {', '.join(wanted)}",
            fix="add --component encoder_streaming, or leave --cache and --streaming-cache-drop-size out",
        )
    needed = {*wanted, *(base for variant, base in VARIANT_OF.items() if variant in wanted)}
    return tuple(name for name in available if name in needed or ALL in wanted)


def _decoding(decoder: Decoder | None, config: ModelConfig, origin: Path) -> tuple[ComponentName, ...]:
    available = _decoders(config)
    if decoder is not None and decoder not in available:
        raise UsageError(
            f"the model has no {decoder} decoder", where=origin, fix=f"choose from: {', '.join(available)}"
        )
    return tuple(name for one in (available if decoder is None else (decoder,)) for name in _OF_DECODER[one])


def _decoders(config: ModelConfig) -> tuple[Decoder, ...]:
    """How a model of this config can be decoded, the transducer first."""
    decoders: list[Decoder] = []
    if config.transducer is not None:
        decoders.append("tdt" if config.transducer.spec.durations else "rnnt")
    if config.ctc_prefix is not None:
        decoders.append("ctc")
    return tuple(decoders)
