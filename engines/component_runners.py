"""One runner for each component that a decoder needs.

given runners + ONNX Runtime on the bundle's graphs for the rest -> runner by component name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from nemotrt.bundle import Bundle, ComponentName
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.padding_aware_runner import VARIANT_SUFFIX, PaddingAwareRunner
from nemotrt.engines.runner import Runner
from nemotrt.errors import MachineError, UsageError

FRONT_END: ComponentName = "preprocessor"


class ComponentRunners:
    """Runners of ``names``, but for the front end of a model that has none.

    Args:
        bundle: holds the graphs.
        names: the components.
        given: by component name, used in place of ONNX Runtime. Whoever made them closes them; those of other
            components of the bundle stay unused.
        threads: threads of the sessions opened here; ``None`` leaves it to ONNX Runtime.

    Raises:
        UsageError: a runner for a component that does not exist.
        BundleError, GraphError: the bundle's files cannot be used.
        MachineError: a bfloat16 graph for ONNX Runtime.
    """

    def __init__(
        self, bundle: Bundle, names: Sequence[ComponentName], *, given: Mapping[str, Runner], threads: int | None
    ) -> None:
        _check_names(bundle, given)
        self._runners: dict[str, Runner] = {}
        with ExitStack() as opened:
            for name in names:
                if name == FRONT_END and bundle.meta.mel is None:
                    continue
                runner = given.get(name)
                if runner is None:
                    runner = _opened(bundle, name, threads=threads)
                    opened.callback(runner.close)
                self._runners[name] = runner
            self._own = opened.pop_all()

    def __getitem__(self, name: ComponentName) -> Runner:
        return self._runners[name]

    @property
    def label(self) -> str:
        """The backends of the model, each once. The front end does not count: it runs on ONNX Runtime always."""
        labels = (runner.label for name, runner in self._runners.items() if name != FRONT_END)
        return " + ".join(dict.fromkeys(labels))

    def close(self) -> None:
        """Close the sessions opened here. Safe to call twice."""
        self._own.close()


def _opened(bundle: Bundle, name: ComponentName, *, threads: int | None) -> Runner:
    """With its variant without masks behind it, if the bundle has one."""
    if bundle.meta.precision == "bf16" and name != FRONT_END:
        raise MachineError(
            "ONNX Runtime does not compute in bfloat16 on a CPU",
            where=bundle.graph_path(name),
            fix="build engines for a GPU (nemotrt build), or cast to fp16 to try it here",
        )
    spec, variant = bundle.component(name), f"{name}{VARIANT_SUFFIX}"
    if variant not in bundle.meta.components:
        optimize = bundle.meta.precision != "fp8"
        return OnnxRuntimeRunner(bundle.graph_path(name), spec=spec, threads=threads, optimize=optimize)
    return PaddingAwareRunner(
        OnnxRuntimeRunner(bundle.graph_path(variant), spec=bundle.component(variant), threads=threads),
        lambda: OnnxRuntimeRunner(bundle.graph_path(name), spec=spec, threads=threads),
        inputs=spec.inputs,
        outputs=spec.outputs,
        spec=bundle.meta.encoder,
    )


def _check_names(bundle: Bundle, runners: Mapping[str, Runner]) -> None:
    unknown = sorted(runners.keys() - bundle.meta.components.keys())
    if unknown:
        raise UsageError(
            f"a runner was given for {unknown[0]!r}, which is not a component of the bundle",
            where=bundle.path,
            found=", ".join(bundle.meta.components),
            fix="name runners after components",
        )
