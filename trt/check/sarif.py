"""Findings as SARIF 2.1.0, which code hosts and editors show beside the file.

Source: OASIS, Static Analysis Results Interchange Format 2.1.0.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemotrt import __version__
from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.rule import Rule

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif_log(findings: Sequence[Finding], rules: Sequence[Rule]) -> dict[str, object]:
    """One run with the ``rules`` that were asked, and a result for each finding."""
    place_of_rule = {rule.id: index for index, rule in enumerate(rules)}
    driver = {"name": "nemotrt", "version": __version__, "rules": [_descriptor(rule) for rule in rules]}
    results = [_result(finding, place_of_rule.get(finding.rule, -1)) for finding in findings]
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _descriptor(rule: Rule) -> dict[str, object]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.reason},
        "help": {"text": rule.fix},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(finding: Finding, rule_index: int) -> dict[str, object]:
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule_index,
        "level": finding.severity,
        "message": {"text": f"{finding.component}: {finding.what}. To fix: {finding.fix}"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": finding.graph.absolute().as_uri()}},
                "logicalLocations": [{"name": place, "kind": "element"} for place in finding.places],
            }
        ],
    }
