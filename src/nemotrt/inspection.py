"""What stands behind ``nemotrt check``: a bundle or one graph in, digests proven, findings out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nemotrt.bench.text_file import write_whole
from nemotrt.bundle import Bundle
from nemotrt.stages import Progress, proven_bundle
from nemotrt.tensorrt_api import best_runtime
from nemotrt.trt.check import Finding, Rule, check_bundle, check_graph_file, chosen_rules
from nemotrt.trt.check.opinions import is_polygraphy_installed
from nemotrt.trt.check.sarif import sarif_log
from nemotrt.trt.quantization.audit import check_quantized


@dataclass(frozen=True)
class Inspection:
    """``bundle`` is ``None`` where one graph was inspected; ``unasked`` are tools that are not installed."""

    target: Path
    bundle: Bundle | None
    rules: tuple[Rule, ...]
    findings: tuple[Finding, ...]
    unasked: tuple[str, ...]

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """Whether nothing is an error."""
        return "fail" if any(finding.severity == "error" for finding in self.findings) else "pass"

    def document(self) -> dict[str, object]:
        """The whole of it for ``--json``: of a bundle with its metadata."""
        meta = {} if self.bundle is None else self.bundle.meta.model_dump(mode="json")
        findings = [{**asdict(finding), "graph": str(finding.graph)} for finding in self.findings]
        verdict = {"verdict": self.verdict, "findings": findings, "unasked": self.unasked}
        return {"path": str(self.target), **meta, **verdict}

    def write_sarif(self, path: Path) -> None:
        """Raises UsageError or MachineError: ``path`` cannot be written."""
        write_whole(json.dumps(sarif_log(self.findings, self.rules), indent=1) + "\n", path)


def inspect_target(target: Path, *, only: Sequence[str], ignored: Sequence[str], on_progress: Progress) -> Inspection:
    """Inspect ``target``, a bundle folder or an ``.onnx`` file, by the rules in ``only`` (empty: all) but ``ignored``.

    Raises:
        UsageError: an id that no rule has.
        BundleError: no bundle, or a file of it is missing, foreign or altered, or one that was quantized stores no
            eight-bit weights.
    """
    rules = chosen_rules(only, ignored)
    bundle = None
    if target.suffix == ".onnx" and target.is_file():
        on_progress(target.name, 0.5)
        findings = check_graph_file(target, rules=rules)
    else:
        on_progress("digests", 0.0)
        bundle = proven_bundle(target)
        check_quantized(bundle)
        findings = check_bundle(bundle, rules=rules, on_component=lambda name: on_progress(name, 0.5))
    return Inspection(target, bundle, rules, findings, _unasked(rules))


def _unasked(rules: Sequence[Rule]) -> tuple[str, ...]:
    asked = {rule.id for rule in rules}
    absent = {
        "TensorRT": "tensorrt-refuses" in asked and best_runtime() is None,
        "Polygraphy": "polygraphy-lint" in asked and not is_polygraphy_installed(),
    }
    return tuple(name for name, is_absent in absent.items() if is_absent)
