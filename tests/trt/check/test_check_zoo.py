"""Every rule finds what it is for, in graphs that were broken on purpose, and leaves sound ones alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import small_graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_graphs import ENCODER
from zoo import ZOO, Place, good

from nemotrt.bundle import Bundle
from nemotrt.trt.check import RULES, check_graph_file, chosen_rules
from nemotrt.trt.check.outside import RULES as OUTSIDE

OWN = tuple(rule for rule in RULES if rule not in OUTSIDE)
"""The rules that need nobody else: those of other tools have tests of their own."""


@pytest.fixture
def place(whole_tdt: Bundle, whole_hybrid: Bundle, tmp_path: Path) -> Place:
    return Place(tmp_path, whole_tdt, whole_hybrid)


def test_a_sound_graph_has_no_findings(place: Place) -> None:
    animal = good(place)
    assert check_graph_file(animal.path, animal.component, rules=OWN) == ()


@pytest.mark.parametrize("name", ZOO)
def test_a_broken_graph_is_found_by_its_rule_and_no_unrelated_one(place: Place, name: str) -> None:
    species = ZOO[name]
    animal = species.make(place)
    findings = check_graph_file(animal.path, animal.component, animal.meta, rules=OWN)
    (rule,) = (rule for rule in RULES if rule.id == species.rule)
    severities = {finding.severity for finding in findings if finding.rule == species.rule}
    assert severities == {species.severity or rule.severity}, findings
    assert {finding.rule for finding in findings} - {species.rule} <= species.also, findings
    for finding in findings:
        assert finding.what
        assert finding.fix
        assert finding.graph == animal.path


def test_every_rule_of_ours_has_a_broken_graph() -> None:
    assert {species.rule for species in ZOO.values()} == {rule.id for rule in OWN}


def test_the_whole_zoo_is_found(place: Place, figure: Callable[[str], None]) -> None:
    found = 0
    for name, species in ZOO.items():
        folder = place.folder / name
        folder.mkdir()
        animal = species.make(replace(place, folder=folder))
        rules = {finding.rule for finding in check_graph_file(animal.path, animal.component, animal.meta, rules=OWN)}
        found += species.rule in rules
    figure(f"nemotrt check: {len(RULES)} rules, {found} of {len(ZOO)} broken graphs found")
    assert found == len(ZOO)


def test_without_its_rule_a_broken_graph_is_not_found(tmp_path: Path) -> None:
    path = small_graphs.encoder(tmp_path)
    (tmp_path / "encoder.onnx.data").unlink()
    rules = tuple(rule for rule in OWN if rule.id != "data-missing")
    assert check_graph_file(path, ENCODER, rules=rules) == ()


def test_a_graph_that_rules_cannot_look_at_is_not_passed_over(place: Place) -> None:
    animal = ZOO["shapes_that_contradict_each_other"].make(place)
    (finding,) = check_graph_file(animal.path, animal.component, rules=chosen_rules(["axis-traced"]))
    assert finding.rule == "graph-invalid"
    assert check_graph_file(animal.path, animal.component, rules=chosen_rules(["data-missing"])) == ()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_bytes_a_file_holds_the_answer_is_findings(tmp_path: Path, changes: list[tuple[float, int]]) -> None:
    path = small_graphs.encoder(tmp_path)
    content = bytearray(path.read_bytes())
    for where, byte in changes:
        content[int(where * len(content))] = byte
    path.write_bytes(content)
    for finding in check_graph_file(path, ENCODER, rules=OWN):
        assert finding.what
