"""Every pass on random graphs: equal, or left alone with a reason; never an exception. Oracle: ONNX Runtime.

HYPOTHESIS_PROFILE=thorough pytest tests/trt/surgery/test_random_graphs.py        5,000 graphs
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from random_graphs import graphs

from nemotrt.trt.surgery import PASSES, chosen_passes
from nemotrt.trt.surgery.equivalence import compare_graphs
from nemotrt.trt.surgery.operate import load_for_surgery, operate, write_model
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

GRID = ((1, 5), (3, 8))
EXAMPLES = {"thorough": 5000}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 300)
QUIET = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example)


def assert_equal(graph: Path, passes: tuple[SurgeryPass, ...]) -> None:
    model = load_for_surgery(graph)
    outcomes = operate(model, passes)
    if any(outcome.changes for outcome in outcomes):
        after = graph.with_name("after.onnx")
        after.with_name("after.onnx.data").unlink(missing_ok=True)
        write_model(model, after)
        onnx.checker.check_model(str(after))
        found = compare_graphs(graph, after, grid=GRID)
        assert found.problem is None, [outcome.name for outcome in outcomes if outcome.changes]


@pytest.mark.timeout(0)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=QUIET)
@given(model=graphs())
def test_every_pass_and_all_together_leave_results_as_they_are(
    model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = tmp_path_factory.getbasetemp() / "before.onnx"
    onnx.save(model, graph)
    for one in PASSES:
        assert_equal(graph, (one,))
    assert_equal(graph, chosen_passes())
