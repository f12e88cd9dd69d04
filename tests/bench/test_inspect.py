"""``nemotrt inspect``: what kind of thing a path is, the page, and an engine where no GPU can say more."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nemotrt import cli
from nemotrt.bench.inspection import inspect_path
from nemotrt.bench.inspection_page import render_inspection_page
from nemotrt.bench.inspection_text import inspection_lines
from nemotrt.bundle import Bundle
from nemotrt.engines.manifest import EngineBuild, identity_from_bundle
from nemotrt.engines.store import EngineStore, StoredEngine
from nemotrt.errors import EngineError, UsageError
from nemotrt.profiles import AxisRange
from nemotrt.tensorrt_api import can_run

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nemotrt", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(str(ended.value.code)), captured.out, captured.err

    return run


@pytest.fixture
def engine(tiny_bundle: Bundle, tmp_path: Path) -> StoredEngine:
    ranges = {"batch": AxisRange(1, 2, 4), "frames": AxisRange(10, 100, 200)}
    identity = identity_from_bundle(
        tiny_bundle,
        "ctc",
        ranges=[ranges],
        runtime="tensorrt-rtx",
        runtime_version="1.7.1.116",
        compute_capabilities=["8.9"],
    )
    spec = tiny_bundle.component("ctc")
    build = EngineBuild(
        **dict(identity),
        profile="demo",
        inputs=spec.inputs,
        outputs=spec.outputs,
        layers=12,
        build_seconds=0.5,
        created=datetime(2026, 1, 2, tzinfo=UTC),
        warnings=(),
        tools={},
    )
    return EngineStore(tmp_path / "store").put(build, b"a plan")


class _Page(HTMLParser):
    """Tags that are opened and closed, and what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.external: list[str] = []
        self.blocks = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.blocks += tag == "details"
        self.external += [str(v) for k, v in attrs if k in ("src", "href") and not str(v).startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_the_page_of_a_bundle_is_well_formed_and_loads_nothing(tdt_bundle: Bundle) -> None:
    inspection = inspect_path(tdt_bundle.path)
    page = render_inspection_page(inspection)
    found = parsed(page)
    assert found.external == []
    assert not re.search(r"url\(|@import|<script", page)
    assert "prefers-color-scheme: dark" in page
    assert found.blocks > 4 * len(tdt_bundle.meta.components)
    for name in tdt_bundle.meta.components:
        assert f">{name}</h2>" in page


def test_what_comes_from_a_file_is_escaped(tdt_bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(tdt_bundle.graph_path("joint"))
    model.producer_name = "<script>alert(1)</script>"
    model.graph.node[0].name = "<b>.MatMul"
    onnx.save(model, tmp_path / "joint.onnx")
    page = render_inspection_page(inspect_path(tmp_path / "joint.onnx"))
    assert parsed(page).external == []
    assert "<script" not in page
    assert "<b>.Mat" not in page


def test_a_bundle_is_said_to_hold_what_its_contract_says(inspect: Run, tdt_bundle: Bundle, tmp_path: Path) -> None:
    code, out, _ = inspect(tdt_bundle.path, "--html", tmp_path / "page.html")
    assert code == 0
    assert "inputs of up to 5,000 encoder frames, 5,000 by the contract" in out
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_document_is_json(inspect: Run, tdt_bundle: Bundle) -> None:
    code, out, _ = inspect(tdt_bundle.graph_path("encoder"), "--json")
    document = json.loads(out)
    assert code == 0
    assert document["graphs"]["encoder"]["positions"]["max_frames"] == 5000
    assert document["graphs"]["encoder"]["scopes"]["nodes"] == document["graphs"]["encoder"]["nodes"]


def test_an_engine_tells_its_manifest_and_why_its_layers_are_not_known(inspect: Run, engine: StoredEngine) -> None:
    if can_run():
        pytest.skip("this machine has a GPU, which says more")
    for path in (engine.plan_path, engine.path):
        text = "\n".join(inspection_lines(inspect_path(path)))
        assert "ctc of fastconformer-ctc, fp32" in text
        assert "batch 1..4, best at 2; frames 10..200, best at 100" in text
        assert "layers      not available: an engine needs an NVIDIA GPU" in text
    code, out, _ = inspect(engine.plan_path, "--json")
    assert code == 0
    assert json.loads(out)["engine"]["key"] == engine.key
    assert parsed(render_inspection_page(inspect_path(engine.path))).external == []


def test_an_engine_whose_manifest_was_altered_is_not_believed(engine: StoredEngine) -> None:
    manifest = engine.path / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"layers": 12', '"layers": 13'), encoding="utf-8")
    with pytest.raises(EngineError, match="altered"):
        inspect_path(engine.path)


def test_what_is_nothing_of_these_is_refused(inspect: Run, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.onnx"):
        with pytest.raises(UsageError, match="nothing to inspect"):
            inspect_path(path)
    assert inspect(tmp_path)[0] == 2
