"""What the layouts share: when a bundle can have one, and how its folder comes to be.

bundle -> decoder chosen, features and durations compared with what the client computes -> private folder -> rename

Weights stream from the bundle's data files into the layout's, one data file a graph.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import Bundle, ComponentName, Decoder
from nemotrt.errors import UsageError

_INLINE_BYTES = 1024

# The front end of both clients: NeMo's usual settings, and no others.
_FEATURES = {"sample_rate": 16000, "n_fft": 512, "window_samples": 400, "hop_samples": 160, "preemphasis": 0.97}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A private folder that becomes ``folder`` by one rename if the block ends well, and else is removed.

    Raises:
        UsageError: ``folder`` exists.
    """
    if os.path.lexists(folder):
        raise UsageError("the output is already there", where=folder, fix="give another output")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def chosen_decoder(bundle: Bundle, decoder: Decoder | None) -> Decoder:
    """``decoder``, or if it is ``None`` the model's transducer, or else its CTC head.

    Raises:
        UsageError: the model cannot be decoded like that.
    """
    transducer = bundle.meta.transducer
    available: list[Decoder] = [] if transducer is None else ["tdt" if transducer.durations else "rnnt"]
    if transducer is None or "ctc" in bundle.meta.components:
        available.append("ctc")
    if decoder is None:
        return available[0]
    if decoder not in available:
        raise UsageError(
            f"the bundle has no {decoder} decoder",
            where=bundle.path,
            found=", ".join(available),
            fix="choose one of those found",
        )
    return decoder


def require_components(bundle: Bundle, client: str, names: tuple[ComponentName, ...]) -> None:
    """Raises :class:`UsageError` if the bundle lacks one of the components that ``client`` decodes with."""
    missing = [name for name in names if name not in bundle.meta.components]
    if missing:
        raise UsageError(
            f"{client} needs components that the bundle does not have: {', '.join(missing)}",
            where=bundle.path,
            found=", ".join(bundle.meta.components),
            fix="export the checkpoint with --component all, which writes those that the model can have",
        )


def refuse_other_features(
    bundle: Bundle, client: str, *, normalize: tuple[str, ...], bins: tuple[int, ...] | None = None
) -> None:
    """Prove that ``client``, which brings its own front end, computes what the model was trained on.

    ``normalize`` and ``bins`` are the client's choices (``bins`` is ``None`` for any number).

    Raises:
        UsageError: naming every setting that differs.
    """
    mel = bundle.meta.audio_front_end()
    choices = {**{name: (value,) for name, value in _FEATURES.items()}, "normalize": normalize}
    if bins is not None:
        choices["features"] = bins
    differs = [
        f"{name} {getattr(mel, name)!r}, {' or '.join(map(repr, values))} there"
        for name, values in choices.items()
        if getattr(mel, name) not in values
    ]
    if differs:
        raise UsageError(
            f"{client} computes other features than this model was trained on, and would transcribe nonsense",
            where=bundle.path,
            found="; ".join(differs),
            fix="run this model with nemotrt, whose front end is part of the bundle",
        )


def refuse_other_durations(bundle: Bundle, client: str) -> None:
    """Prove that the durations of a TDT are 0, 1, 2, ...: clients take the index of one for its value.

    Raises:
        UsageError: they are others.
    """
    durations = () if bundle.meta.transducer is None else bundle.meta.transducer.durations
    if durations != tuple(range(len(durations))):
        raise UsageError(
            f"{client} cannot decode a TDT with these durations: it takes 0, 1, 2, ... for granted",
            where=bundle.path,
            found=", ".join(map(str, durations)),
            fix="run this model with nemotrt",
        )


def copy_graph(
    bundle: Bundle,
    component: ComponentName,
    path: Path,
    *,
    renamed: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a component to ``path`` with outputs ``renamed`` and ``metadata`` added to its own."""
    model = ir.load(bundle.graph_path(component))
    for value in model.graph.outputs:
        value.name = (renamed or {}).get(str(value.name), value.name)
    model.metadata_props.update(metadata or {})
    save_graph(model, path)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``, its weights to one data file beside it."""
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_INLINE_BYTES, max_workers=1)
