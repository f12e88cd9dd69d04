from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_results import sample_results

from nemotrt.bench.results import Results, read_results, write_results
from nemotrt.errors import InputError


def test_results_survive_the_file(tmp_path: Path) -> None:
    path = write_results(sample_results(), tmp_path / "results.json")
    assert read_results(path) == sample_results()
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_unknown_is_written_as_null(tmp_path: Path) -> None:
    document = json.loads(write_results(sample_results(), tmp_path / "results.json").read_text())
    assert document["commit"] is None
    assert document["machine"]["gpu"] is None
    assert document["latency"]["rows"][0]["encoder_work"]["floor_seconds"] is None


def test_the_verdict_is_pass_only_if_something_was_compared_and_all_of_it_passed() -> None:
    passing, failing = sample_results(), sample_results(failing=True)
    assert (passing.verdict, passing.reasons) == ("pass", ())
    assert failing.verdict == "fail"
    assert failing.reasons[0].startswith(failing.comparisons[1].candidate)
    nothing = passing.model_copy(update={"comparisons": ()})
    assert nothing.verdict == "fail"
    assert nothing.reasons == ("Nothing was compared, so nothing is proven.",)


def test_an_engine_that_failed_fails_the_whole() -> None:
    passing = sample_results()
    engine = passing.engines[0].model_copy(update={"state": "failed", "reason": "cosine 0.35"})
    failed = passing.model_copy(update={"engines": (engine,)})
    assert failed.verdict == "fail"
    assert failed.reasons == ("engine encoder (fp32): cosine 0.35",)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema_version": 2}, "another schema version"),
        ({"schema_version": "1"}, "another schema version"),
        ({"surprise": 1}, "do not follow schema version 1"),
        ({"comparisons": "none"}, "do not follow schema version 1"),
        ({"created": "2026-03-01T12:00:00"}, "do not follow schema version 1"),
        ({"machine": None}, "do not follow schema version 1"),
    ],
)
def test_documents_of_another_shape_are_refused_by_name(tmp_path: Path, change: dict, what: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(sample_results().model_dump(mode="json") | change))
    with pytest.raises(InputError, match=what) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_not_results_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_results(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path / "absent.json")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_or_flipped_document_is_read_or_refused_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(sample_results().model_dump_json().encode())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "results.json"
    path.write_bytes(content[: data.draw(st.integers(position, len(content)))])
    with suppress(InputError):
        assert isinstance(read_results(path), Results)
