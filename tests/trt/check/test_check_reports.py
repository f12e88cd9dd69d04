"""Findings on their way out: the table of the rules, the choice of some, order, SARIF."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from zoo import ZOO, Place

import nemotrt.trt.check as package
from nemotrt.bundle import Bundle
from nemotrt.errors import UsageError
from nemotrt.trt.check import RULES, Finding, Rule, check_bundle, check_graph_file, chosen_rules
from nemotrt.trt.check.finding import worst_first
from nemotrt.trt.check.sarif import sarif_log

README = Path(package.__file__).parent / "README.md"


def documented(text: str) -> list[tuple[str, ...]]:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    return [tuple(row) for row in rows]


def row(rule: Rule) -> tuple[str, str, str, str]:
    return rule.id, rule.severity, rule.reason, rule.fix


def finding(severity: str, rule: str = "data-missing") -> Finding:
    return Finding(rule, severity, "encoder", Path("/m/encoder.onnx"), ("a", "b"), "what", "fix")


def test_the_readme_has_exactly_the_rules() -> None:
    assert documented(README.read_text(encoding="utf-8")) == [row(rule) for rule in RULES]


def test_a_rule_that_is_not_documented_would_be_noticed() -> None:
    text = README.read_text(encoding="utf-8").replace("| `data-missing` |", "| `data-gone` |")
    assert documented(text) != [row(rule) for rule in RULES]


def test_ids_are_unique_words_and_every_rule_says_why_and_what_to_do() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.id)
        assert len(rule.reason) > 20
        assert len(rule.fix) > 10


def test_rules_are_chosen_by_id() -> None:
    assert [rule.id for rule in chosen_rules(["data-missing", "opset-old"])] == ["data-missing", "opset-old"]
    assert len(chosen_rules(ignored=["opset-old"])) == len(RULES) - 1
    assert chosen_rules() == RULES


@pytest.mark.parametrize("arguments", [(["opset"], ()), ((), ["opset"])])
def test_a_rule_that_does_not_exist_is_refused(arguments: tuple[list[str], list[str]]) -> None:
    with pytest.raises(UsageError, match=r"no such rule(.|\n)*opset(.|\n)*opset-old"):
        chosen_rules(*arguments)


def test_errors_come_before_warnings_before_notes() -> None:
    mixed = [finding("note"), finding("error"), finding("warning"), finding("error", "data-outside")]
    assert [one.severity for one in worst_first(mixed)] == ["error", "error", "warning", "note"]
    assert [one.rule for one in worst_first(mixed)][:2] == ["data-missing", "data-outside"]


def test_many_places_are_counted_and_one_is_named() -> None:
    assert finding("note").place == "a (+1)"


def test_every_component_of_a_bundle_is_looked_at(whole_tdt: Bundle) -> None:
    promised = whole_tdt.meta.encoder.model_copy(update={"max_encoder_frames": 9000})
    meta = whole_tdt.meta.model_copy(update={"encoder": promised})
    findings = check_bundle(Bundle(whole_tdt.path, meta), rules=chosen_rules(["positions-limit"]))
    assert {one.component for one in findings} == {"encoder", "encoder_nomask"}


def test_sarif_has_what_the_standard_asks_for(whole_tdt: Bundle, whole_hybrid: Bundle, tmp_path: Path) -> None:
    animal = ZOO["a_node_for_nothing"].make(Place(tmp_path, whole_tdt, whole_hybrid))
    findings = (*check_graph_file(animal.path, rules=chosen_rules(["node-unused"])), finding("error"))
    log = json.loads(json.dumps(sarif_log(findings, RULES)))
    assert (log["version"], "sarif-schema-2.1.0" in log["$schema"]) == ("2.1.0", True)
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert run["tool"]["driver"]["name"] == "nemotrt"
    assert [rule["id"] for rule in rules] == [rule.id for rule in RULES]
    for rule in rules:
        assert rule["shortDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
    assert len(run["results"]) == len(findings)
    for result, one in zip(run["results"], findings, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == one.rule
        assert result["level"] == one.severity
        assert one.what in result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"].startswith("file:///")
        assert [place["name"] for place in location["logicalLocations"]] == list(one.places)
