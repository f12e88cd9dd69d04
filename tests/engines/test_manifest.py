import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from engine_samples import LONG, PLAN, SHORT, sample_build, sample_manifest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nemotrt.bundle import Bundle
from nemotrt.engines.manifest import (
    MAX_MANIFEST_BYTES,
    EngineManifest,
    Verification,
    identity_from_bundle,
    json_from_manifest,
    manifest_from_json,
)
from nemotrt.errors import BundleError, EngineError
from nemotrt.profiles import AxisRange
from nemotrt.tensorrt_api import CURRENT_GPU, Gpu

DOCUMENT = json_from_manifest(sample_manifest())
WHERE = "manifest.json"

AN_L4 = Gpu("NVIDIA L4", "8.9", 24 << 30)


def test_a_manifest_survives_the_way_through_its_file() -> None:
    assert manifest_from_json(DOCUMENT, where=WHERE) == sample_manifest()


def test_a_fresh_manifest_describes_the_plan_and_trusts_nothing() -> None:
    manifest = sample_manifest()

    assert manifest.size_bytes == len(PLAN)
    assert manifest.plan_sha256 == hashlib.sha256(PLAN).hexdigest()
    assert manifest.verification.state == "built, not verified"


@pytest.mark.parametrize(
    "change",
    [
        {"family": "fastconformer-ctc"},
        {"component": "ctc"},
        {"precision": "fp32"},
        {"graph_files": {"encoder.onnx": "1" * 64, "encoder.onnx.data": "3" * 64}},
        {"ranges": (LONG, SHORT)},
        {"ranges": (SHORT, {**LONG, "frames": AxisRange(150, 501, 1000)})},
        {"runtime": "tensorrt"},
        {"runtime_version": "1.7.2"},
        {"compute_capabilities": ("8.9",)},
        {"gpu": "NVIDIA L4"},
        {"tf32": True},
    ],
    ids=str,
)
def test_whatever_decides_the_plan_decides_the_key(change: dict[str, object]) -> None:
    assert sample_build(**change).fingerprint() != sample_build().fingerprint()


@pytest.mark.parametrize(
    "change",
    [{"layers": 1}, {"build_seconds": 9.0}, {"tools": {}}, {"warnings": ()}, {"profile": "another name"}],
    ids=str,
)
def test_what_the_builder_reports_does_not_decide_the_key(change: dict[str, object]) -> None:
    assert sample_build(**change).fingerprint() == sample_build().fingerprint()


def test_the_key_is_the_same_in_another_process() -> None:
    program = "from engine_samples import sample_build; print(sample_build().fingerprint())"
    other = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"],
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == sample_build().fingerprint()


@given(data=st.data())
def test_flipped_bytes_are_an_engine_error_or_change_nothing(data: st.DataObject) -> None:
    document = bytearray(DOCUMENT)
    positions = st.integers(0, len(document) - 1)
    for position in data.draw(st.lists(positions, min_size=1, max_size=8)):
        document[position] ^= data.draw(st.integers(1, 255))
    assert_refused_or_identical(bytes(document))


@given(cut=st.integers(0, len(DOCUMENT) - 1), length=st.integers(1, len(DOCUMENT)), new=st.binary(max_size=40))
def test_bytes_cut_out_or_replaced_are_an_engine_error_or_change_nothing(cut: int, length: int, new: bytes) -> None:
    assert_refused_or_identical(DOCUMENT[:cut] + new + DOCUMENT[cut + length :])


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore")))
def test_bytes_that_never_were_a_manifest_are_an_engine_error(document: bytes) -> None:
    with pytest.raises(EngineError, match=r"manifest\.json"):
        manifest_from_json(document, where=WHERE)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(sorted(EngineManifest.model_fields)), value=JSON_VALUES)
def test_any_other_value_of_any_field_is_an_engine_error_or_changes_nothing(field: str, value: object) -> None:
    document = json.loads(DOCUMENT)
    document["manifest"][field] = value
    assert_refused_or_identical(json.dumps(document).encode())


def assert_refused_or_identical(document: bytes) -> None:
    try:
        outcome: object = manifest_from_json(document, where=WHERE)
    except EngineError as error:
        outcome = error
    if isinstance(outcome, EngineError):
        assert str(outcome.where).startswith(WHERE)
        assert outcome.found
        assert outcome.fix
    else:
        assert outcome == sample_manifest()


def test_unknown_fields_are_refused_by_name() -> None:
    document = json.loads(DOCUMENT)
    document["manifest"]["speed"] = "fast"
    with pytest.raises(EngineError, match=r"manifest\.speed"):
        manifest_from_json(json.dumps(document).encode(), where=WHERE)


def test_another_schema_version_is_refused() -> None:
    document = DOCUMENT.replace(b'"schema_version": 1', b'"schema_version": 2')
    assert document != DOCUMENT
    with pytest.raises(EngineError, match="schema_version"):
        manifest_from_json(document, where=WHERE)


def test_an_edited_verdict_is_refused_although_its_form_is_right() -> None:
    document = DOCUMENT.replace(b"not compared on a GPU yet", b"not compared on a GPU now")
    assert document != DOCUMENT
    with pytest.raises(EngineError, match="altered"):
        manifest_from_json(document, where=WHERE)


def test_a_file_too_large_to_be_a_manifest_is_not_even_parsed() -> None:
    with pytest.raises(EngineError, match="bytes"):
        manifest_from_json(b" " * (MAX_MANIFEST_BYTES + 1), where=WHERE)


def test_deep_nesting_is_an_engine_error() -> None:
    with pytest.raises(EngineError):
        manifest_from_json(b'{"manifest":' + b"[" * 200_000, where=WHERE)


def test_a_build_without_a_range_for_an_axis_cannot_be_described() -> None:
    with pytest.raises(ValidationError, match="frames"):
        sample_build(ranges=({"batch": SHORT["batch"]},))


def test_a_verdict_needs_its_circumstances() -> None:
    with pytest.raises(ValidationError, match="reference, gpu and time"):
        Verification(state="verified")
    with pytest.raises(ValidationError, match="without a reason"):
        Verification(state="failed", reference="onnxruntime CPU", gpu="NVIDIA L4", checked=datetime.now(tz=UTC))


def test_identity_from_bundle_takes_the_digests_and_the_axes_of_the_component(tdt_bundle: Bundle) -> None:
    ranges = {**SHORT, "tokens": AxisRange(1, 1, 1), "encoder_frames": AxisRange(2, 13, 25)}
    identity = identity_from_bundle(
        tdt_bundle,
        "encoder",
        ranges=[ranges],
        runtime="tensorrt-rtx",
        runtime_version="1.7",
        compute_capabilities=("8.9", "8.6"),
    )

    assert identity.graph_files == {
        name: tdt_bundle.meta.files[name].sha256 for name in tdt_bundle.component("encoder").files
    }
    assert identity.ranges == (SHORT,)
    assert identity.compute_capabilities == ("8.6", "8.9")
    with pytest.raises(BundleError, match="no component"):
        identity_from_bundle(
            tdt_bundle,
            "nothing",  # type: ignore[arg-type]  # what a caller without a type checker may pass
            ranges=[ranges],
            runtime="tensorrt-rtx",
            runtime_version="1.7",
            compute_capabilities=(),
        )


def test_the_current_gpu_is_recorded_by_what_it_is(tdt_bundle: Bundle) -> None:
    rtx = identity_from_bundle(
        tdt_bundle,
        "encoder",
        ranges=[SHORT],
        runtime="tensorrt-rtx",
        runtime_version="1.7",
        compute_capabilities=(CURRENT_GPU,),
        gpu=AN_L4,
    )
    timed = identity_from_bundle(
        tdt_bundle,
        "encoder",
        ranges=[SHORT],
        runtime="tensorrt",
        runtime_version="10.9",
        compute_capabilities=(),
        gpu=AN_L4,
    )

    assert (rtx.compute_capabilities, rtx.gpu) == (("8.9",), None)
    assert (timed.compute_capabilities, timed.gpu) == (("8.9",), "NVIDIA L4")


def test_the_current_gpu_without_a_gpu_is_an_engine_error(tdt_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="compute_capabilities"):
        identity_from_bundle(
            tdt_bundle,
            "encoder",
            ranges=[SHORT],
            runtime="tensorrt-rtx",
            runtime_version="1.7",
            compute_capabilities=(CURRENT_GPU,),
        )
