"""Profiles and their axes. Oracles: the formula of the bundle contract, and plain counting."""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemotrt import bundle
from nemotrt.errors import ProfileError
from nemotrt.profiles import AxisRange, Geometry, Profile, axis_ranges, load_profile, preset_names
from nemotrt.profiles.axes import AxisName
from nemotrt.profiles.strict_yaml import MAX_BYTES

GEOMETRY = Geometry(
    sample_rate=16000,
    hop_samples=160,
    subsampling_factor=8,
    causal_subsampling=False,
    max_feature_frames=40000,
)
VALID = """\
version: 1
name: test
seconds: {min: 0.5, opt: 2, max: 10}
batch: {min: 1, opt: 2, max: 4}
"""

counts = st.tuples(*[st.integers(1, 4000)] * 3).map(sorted)
geometries = st.builds(
    Geometry,
    sample_rate=st.sampled_from([8000, 16000]),
    hop_samples=st.sampled_from([80, 160, 200]),
    subsampling_factor=st.sampled_from([1, 2, 4, 8]),
    causal_subsampling=st.booleans(),
    max_feature_frames=st.just(10**7),
)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "profile.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_under_its_own_name_and_describes_itself(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    assert axis_ranges(profile, GEOMETRY)


def test_the_presets_are_the_documented_ones() -> None:
    assert preset_names() == ("demo", "server-offline", "single-stream")


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ProfileError, match="demo, server-offline, single-stream"):
        load_profile("offline")


def test_a_file_is_found_by_its_path_and_a_missing_one_is_named(tmp_path: Path) -> None:
    assert load_profile(written(tmp_path, VALID)).name == "test"
    assert load_profile(str(tmp_path / "profile.yaml")).name == "test"
    with pytest.raises(ProfileError, match=r"absent\.yaml"):
        load_profile(tmp_path / "absent.yaml")


def test_ranges_of_ten_seconds_at_a_hundredth_of_a_second_a_frame(tmp_path: Path) -> None:
    ranges = axis_ranges(load_profile(written(tmp_path, VALID)), GEOMETRY)
    assert ranges == {
        "batch": AxisRange(1, 2, 4),
        "frames": AxisRange(50, 200, 1000),
        "encoder_frames": AxisRange(7, 25, 125),
        "joint_frames": AxisRange(1, 1, 1),
        "tokens": AxisRange(1, 1, 1),
    }


def test_the_axes_are_those_of_the_bundle_contract() -> None:
    contract = {bundle.BATCH, bundle.FRAMES, bundle.ENCODER_FRAMES, bundle.JOINT_FRAMES, bundle.TOKENS}
    assert set(get_args(AxisName)) == contract


@given(geometry=geometries, frames=st.integers(1, 20000))
def test_subsampling_agrees_with_the_bundle_contract(geometry: Geometry, frames: int) -> None:
    spec = bundle.EncoderSpec.model_construct(
        subsampling_factor=geometry.subsampling_factor, causal_subsampling=geometry.causal_subsampling
    )
    expected = spec.encoder_frames_from_feature_frames(frames)
    assert geometry.encoder_frames_from_feature_frames(frames) == expected >= 1


@given(geometry=geometries, hundredths=counts, batch=counts)
def test_every_range_is_in_order_and_starts_at_one_or_more(
    geometry: Geometry, hundredths: list[int], batch: list[int]
) -> None:
    names = ("min", "opt", "max")
    profile = Profile.model_validate(
        {
            "version": 1,
            "name": "fuzz",
            "seconds": dict(zip(names, (h / 100 for h in hundredths), strict=True)),
            "batch": dict(zip(names, batch, strict=True)),
        }
    )
    for axis_range in axis_ranges(profile, geometry).values():
        assert 1 <= axis_range.min <= axis_range.opt <= axis_range.max


@given(frames=st.integers(1, 10**6), geometry=geometries)
def test_seconds_and_frames_are_inverse(frames: int, geometry: Geometry) -> None:
    seconds = geometry.seconds_from_feature_frames(frames)
    assert geometry.feature_frames_from_seconds(seconds) == frames


def test_a_profile_that_just_fits_the_position_table_is_taken_and_one_frame_less_is_refused() -> None:
    profile = load_profile("demo")  # 12 s are 1200 frames
    axis_ranges(profile, replace(GEOMETRY, max_feature_frames=1200))
    with pytest.raises(ProfileError, match=r"seconds\.max to at most 11\.99"):
        axis_ranges(profile, replace(GEOMETRY, max_feature_frames=1199))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("version: 1", "version: 2"), "version"),
        (("version: 1", "version: '1'"), "version"),
        (("name: test", "name: ../test"), "name"),
        (("min: 0.5", "min: 3"), "seconds"),
        (("min: 0.5", "min: 0"), r"seconds\.min"),
        (("min: 0.5", "min: '0.5'"), r"seconds\.min"),
        (("max: 10", "max: .inf"), r"seconds\.max"),
        (("max: 10", "max: .nan"), r"seconds\.max"),
        (("max: 4", "max: 4.0"), r"batch\.max"),
        (("max: 4", "max: true"), r"batch\.max"),
        (("max: 4", "max: 100000"), r"batch\.max"),
        (("opt: 2, max: 4", "opt: 5, max: 4"), "batch"),
        (("max: 4}", "max: 4, step: 1}"), r"batch\.step"),
        (("batch:", "batches:"), "batch"),
    ],
)
def test_a_wrong_value_is_refused_naming_the_file_and_the_key(
    tmp_path: Path, change: tuple[str, str], key: str
) -> None:
    changed = VALID.replace(*change)
    assert changed != VALID
    with pytest.raises(ProfileError, match=rf"profile\.yaml: {key}\n"):
        load_profile(written(tmp_path, changed))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (VALID + "name: again\n", "a key is given twice"),
        (VALID.replace("max: 4}", "max: 4, max: 5}"), "line 4, column 8: a key is given twice"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("!!python/object/apply:os.system ['true']", "tags"),
        ("- 1\n", "this is a list"),
        ("", "this is a NoneType"),
        ("1: 2\n", "not text"),
        ("a: [", "line 1, column 5"),
        ("a: 2021-99-99", "month must be in 1..12"),
        ("[" * 5000, "nested too deeply"),
        (b"\xff\xfe\x00", "utf-8"),
        ("#" * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_what_is_not_a_plain_mapping_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load_profile(written(tmp_path, content))


yaml_like = st.text(alphabet=string.printable, max_size=200) | st.binary(max_size=200)
mutations = st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 20), yaml_like)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(mutation=mutations)
def test_a_mutated_profile_loads_in_order_or_raises_a_profile_error(
    tmp_path: Path, mutation: tuple[int, int, str | bytes]
) -> None:
    start, removed, inserted = mutation
    inserted_bytes = inserted if isinstance(inserted, bytes) else inserted.encode()
    valid = VALID.encode()
    path = written(tmp_path, valid[:start] + inserted_bytes + valid[start + removed :])
    try:
        profile = load_profile(path)
    except ProfileError:
        return
    assert 0 < profile.seconds.min <= profile.seconds.opt <= profile.seconds.max
    assert 1 <= profile.batch.min <= profile.batch.opt <= profile.batch.max


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(document=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_yaml_document_loads_or_raises_a_profile_error(tmp_path: Path, document: object) -> None:
    with pytest.raises(ProfileError):
        load_profile(written(tmp_path, yaml.safe_dump({"version": document, "seconds": document})))


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 3, 2)])
def test_an_axis_range_out_of_order_cannot_be_made(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ProfileError, match="out of order"):
        AxisRange(*sizes)


def test_an_axis_range_contains_its_ends_and_nothing_beyond() -> None:
    assert [size in AxisRange(2, 3, 4) for size in (1, 2, 4, 5)] == [False, True, True, False]


def test_an_impossible_geometry_cannot_be_made() -> None:
    for wrong in ({"subsampling_factor": 6}, {"hop_samples": 0}):
        with pytest.raises(ProfileError, match="impossible"):
            replace(GEOMETRY, **wrong)
