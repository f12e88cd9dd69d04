"""Every error nemotrt raises on purpose.

    NemotrtError
    |-- InputError (ValueError)              exit 2: something the user gave is wrong
    |   |-- CheckpointError                  a .nemo file
    |   |   |-- ArchiveError                 not a readable archive, or a hostile one
    |   |   |-- ConfigError                  model_config.yaml: missing, malformed, contradictory
    |   |   |-- UnsupportedModelError        a well-formed model that nemotrt does not build
    |   |   `-- WeightsError                 weights that do not fit the config
    |   |-- BundleError                      a bundle folder: incomplete, altered, another schema
    |   |-- ProfileError                     an optimization profile, or a shape outside of it
    |   |-- EngineError                      a plan or manifest in the engine store
    |   |-- AudioError                       an audio file or an audio manifest
    |   |-- GraphError                       an ONNX graph that cannot be processed or built
    |   `-- UsageError                       options that contradict each other, an output that exists
    |-- MachineError (RuntimeError)          exit 3: this machine cannot do it (no GPU, no TensorRT, disk full)
    `-- ComparisonFailed                     exit 1: compared, and different

A message says what is wrong, where, what was found, and what to do about it.
"""

from __future__ import annotations

from os import PathLike
from typing import ClassVar


class NemotrtError(Exception):
    """Base of all deliberate errors. ``str()`` gives the whole message, ready to print."""

    exit_code: ClassVar[int] = 2

    def __init__(
        self,
        what: str,
        *,
        where: str | PathLike[str] | None = None,
        found: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.found = None if found is None else str(found)
        self.fix = fix
        details = (("where", self.where), ("found", self.found), ("to fix", self.fix))
        super().__init__("\n".join([what, *(f"  {label}: {text}" for label, text in details if text)]))

    def as_dict(self) -> dict[str, str | None]:
        """The message in parts, for ``--json`` output."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "found": self.found,
            "fix": self.fix,
        }


class InputError(NemotrtError, ValueError):
    """Something the user gave is wrong."""


class CheckpointError(InputError):
    """A .nemo checkpoint cannot be used."""


class ArchiveError(CheckpointError):
    """The .nemo file is not a readable archive, or a hostile one."""


class ConfigError(CheckpointError):
    """``model_config.yaml`` is missing, malformed or contradictory."""


class UnsupportedModelError(CheckpointError):
    """The model is well-formed but nemotrt does not build it; names the config key."""


class WeightsError(CheckpointError):
    """The weights do not fit the config."""


class BundleError(InputError):
    """A bundle folder is incomplete, was altered, or has another schema."""


class ProfileError(InputError):
    """An optimization profile is invalid, or a shape lies outside of every profile."""


class EngineError(InputError):
    """A plan or its manifest cannot be trusted or used."""


class AudioError(InputError):
    """An audio file or audio manifest cannot be used."""


class GraphError(InputError):
    """An ONNX graph cannot be processed or built."""


class UsageError(InputError):
    """Options contradict each other, or an output is already there."""


class MachineError(NemotrtError, RuntimeError):
    """This machine cannot do what was asked: no GPU, a missing library, not enough memory or disk."""

    exit_code: ClassVar[int] = 3


class ComparisonFailed(NemotrtError):
    """Two models were compared and differ beyond the tolerances."""

    exit_code: ClassVar[int] = 1
