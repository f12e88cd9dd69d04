"""What the contract asks of a model whose graphs NeMo makes, which may be one that the native front end does not build.

model_config.yaml -> as it is, or with the modules that its own extend -> ModelConfig
                  -> a graph for each component: native ones to be written, others for their tensors' sake
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nemotrt.bundle import ComponentName
from nemotrt.errors import UnsupportedModelError
from nemotrt.export.archive import NemoArchive
from nemotrt.export.components import VARIANT_OF, component_writers
from nemotrt.export.config import ModelConfig, model_config
from nemotrt.export.encoder_config import ModelChoices
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.run_nemo_modules import COMPONENTS
from nemotrt.export.weights import Loader, Weights

# Modules that are others with more inside, of which the contract says nothing.
_EXTENDED = {"ConformerEncoderAdapter": "ConformerEncoder", "SampledRNNTJoint": "RNNTJoint"}


def described_graphs(
    archive: NemoArchive, *, choices: ModelChoices
) -> tuple[ModelConfig, dict[ComponentName, GraphBuilder]]:
    """The model as the contract has it, and its components. Those that NeMo makes have no weights to be saved.

    Raises:
        ConfigError: a key is missing or of the wrong type, or two keys contradict each other.
        UnsupportedModelError: the contract has no words for the model.
    """
    config, is_built = described_config(archive.config, origin=archive.path, choices=choices)
    graphs: dict[ComponentName, GraphBuilder] = {}
    for name, write in component_writers(config, None).items():
        if name not in VARIANT_OF and (name in COMPONENTS or name == "preprocessor" or is_built):
            graphs[name] = GraphBuilder(name)
            write(graphs[name], _AnyWeights() if name in COMPONENTS else archive.weights)
    return config, graphs


def described_config(config: Mapping[str, Any], *, origin: Path, choices: ModelChoices) -> tuple[ModelConfig, bool]:
    """What the contract says of the model, and whether the native front end builds it. Raises the same."""
    try:
        return model_config(config, origin=origin, choices=choices), True
    except UnsupportedModelError:
        pass
    try:
        return model_config(_seen_from_outside(config), origin=origin, choices=choices), False
    except UnsupportedModelError as exc:
        raise UnsupportedModelError(
            f"the bundle contract cannot describe the model: {exc.what}", where=exc.where, found=exc.found, fix=exc.fix
        ) from exc


def _seen_from_outside(config: Mapping[str, Any]) -> Mapping[str, Any]:
    result = dict(config)
    for name, section in config.items():
        target = str(section.get("_target_")).rsplit(".", 1)[-1] if isinstance(section, dict) else ""
        if target in _EXTENDED:
            result[name] = section | {"_target_": _EXTENDED[target]}
    return result


class _AnyWeights(Weights):
    """Weights of which nothing is known: a graph is written with them to learn its inputs and outputs."""

    def __init__(self) -> None:
        """There is no checkpoint to read."""

    def expect(self, name: str, shape: tuple[int, ...]) -> Loader:  # noqa: ARG002
        return lambda: np.zeros(shape, np.float32)
