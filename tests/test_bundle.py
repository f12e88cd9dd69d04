"""Reading a bundle: what is refused, and what is proven about one that is not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nemotrt.bundle import META_NAME, Bundle, BundleMeta, load_bundle, verify_digests
from nemotrt.errors import BundleError

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copied(tdt_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tdt_bundle.path, tmp_path / "bundle"))


def edit_meta(folder: Path, edit: Edit) -> None:
    document = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
    edit(document)
    (folder / META_NAME).write_text(json.dumps(document), encoding="utf-8")


class TestLoading:
    def test_a_whole_bundle_is_read_as_it_was_written(self, tdt_bundle: Bundle, copied: Path) -> None:
        bundle = load_bundle(copied)
        verify_digests(bundle)
        assert bundle.meta == tdt_bundle.meta
        assert bundle.meta.fingerprint() == tdt_bundle.meta.fingerprint()

    @pytest.mark.parametrize("name", ["nothing", "bundle/encoder.onnx", "bundle/model_meta.json"])
    def test_what_is_no_bundle_is_refused_with_the_command_that_makes_one(self, copied: Path, name: str) -> None:
        with pytest.raises(BundleError, match="nemotrt export"):
            load_bundle(copied.parent / name)

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=META_NAME):
            load_bundle(tmp_path)

    @pytest.mark.parametrize("name", ["encoder.onnx", "encoder.onnx.data", "vocab.txt", "tokenizer.model"])
    def test_a_missing_file_is_named(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        with pytest.raises(BundleError, match=name):
            load_bundle(copied)

    def test_a_file_that_became_a_link_is_refused(self, copied: Path) -> None:
        (copied / "vocab.txt").rename(copied.parent / "vocab.txt")
        (copied / "vocab.txt").symlink_to(copied.parent / "vocab.txt")
        with pytest.raises(BundleError, match=r"vocab\.txt"):
            load_bundle(copied)

    def test_a_shortened_file_is_named_with_both_sizes(self, copied: Path) -> None:
        path = copied / "encoder.onnx.data"
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BundleError, match=f"{size - 1} bytes, {size} recorded"):
            load_bundle(copied)

    def test_a_file_that_does_not_belong_there_is_named(self, copied: Path) -> None:
        (copied / "encoder.plan").touch()
        with pytest.raises(BundleError, match=r"encoder\.plan"):
            load_bundle(copied)

    def test_a_changed_byte_is_proven_though_the_size_is_right(self, copied: Path) -> None:
        path = copied / "encoder.onnx.data"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        bundle = load_bundle(copied)
        with pytest.raises(BundleError, match=r"encoder\.onnx\.data is not the file that was exported"):
            verify_digests(bundle)


class TestTheDocument:
    @pytest.mark.parametrize(
        ("edit", "named"),
        [
            (lambda meta: meta.update(schema_version=2), "schema_version"),
            (lambda meta: meta.update(comment="mine"), "comment"),
            (lambda meta: meta.pop("family"), "family"),
            (lambda meta: meta.update(family="whisper"), "family"),
            (lambda meta: meta.update(vocabulary_size="96"), "vocabulary_size"),
            (lambda meta: meta.update(vocabulary_size=0), "vocabulary_size"),
            (lambda meta: meta.update(blank_id=0), "blank_id"),
            (lambda meta: meta.update(checkpoint_sha256="0"), "checkpoint_sha256"),
            (lambda meta: meta["encoder"].update(layers=4.0), "encoder.layers"),
            (lambda meta: meta["encoder"].update(extra=1), "encoder.extra"),
            (lambda meta: meta["components"].update(postprocessor=meta["components"]["joint"]), "components"),
            (lambda meta: meta["files"].pop("joint.onnx"), "joint.onnx"),
            (lambda meta: meta["files"].update({"../x": meta["files"]["vocab.txt"]}), "../x"),
            (lambda meta: meta["files"].update({"/etc/passwd": meta["files"]["vocab.txt"]}), "/etc/passwd"),
            (lambda meta: meta["files"].update({"a/b": meta["files"]["vocab.txt"]}), "a/b"),
        ],
    )  # fmt: skip
    def test_what_breaks_the_schema_is_named(self, copied: Path, edit: Edit, named: str) -> None:
        edit_meta(copied, edit)
        with pytest.raises(BundleError) as caught:
            load_bundle(copied)
        assert "schema version 1" in caught.value.what
        assert named in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{" * 100_000])
    def test_what_is_not_a_document_is_refused(self, copied: Path, content: bytes) -> None:
        (copied / META_NAME).write_bytes(content)
        with pytest.raises(BundleError):
            load_bundle(copied)

    @settings(deadline=None, max_examples=100)
    @given(st.data())
    def test_damaged_json_never_raises_anything_else(self, tdt_bundle: Bundle, data: st.DataObject) -> None:
        text = bytearray(tdt_bundle.meta.model_dump_json().encode())
        for _ in range(data.draw(st.integers(1, 3))):
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
        try:
            meta = BundleMeta.model_validate_json(bytes(text))
        except ValidationError:
            return
        assert BundleMeta.model_validate_json(meta.model_dump_json()) == meta

    def test_every_field_changes_the_fingerprint(self, tdt_bundle: Bundle) -> None:
        document = json.loads(tdt_bundle.meta.model_dump_json())
        for change in ({"name": "other"}, {"tools": {}}, {"checkpoint_sha256": "0" * 64}):
            altered = BundleMeta.model_validate_json(json.dumps(copy.deepcopy(document) | change))
            assert altered.fingerprint() != tdt_bundle.meta.fingerprint()


class TestABundle:
    def test_a_component_that_is_not_there_is_answered_with_those_that_are(self, tdt_bundle: Bundle) -> None:
        with pytest.raises(BundleError, match="preprocessor, encoder, encoder_nomask, predictor, joint"):
            tdt_bundle.component("ctc")

    def test_a_vocabulary_of_another_length_is_refused(self, copied: Path) -> None:
        vocabulary = (copied / "vocab.txt").read_text(encoding="utf-8")
        (copied / "vocab.txt").write_text(vocabulary + "more\n", encoding="utf-8")
        edit_meta(
            copied, lambda meta: meta["files"]["vocab.txt"].update(size_bytes=len((vocabulary + "more\n").encode()))
        )
        with pytest.raises(BundleError, match="97 lines, 96 expected"):
            load_bundle(copied).vocabulary()

    def test_the_joint_is_as_wide_as_pieces_blank_and_durations(
        self, tdt_bundle: Bundle, hybrid_bundle: Bundle
    ) -> None:
        assert tdt_bundle.meta.logits_width == 96 + 1 + 5
        assert hybrid_bundle.meta.logits_width == 96 + 1

    def test_the_geometry_is_that_of_the_model(self, hybrid_bundle: Bundle) -> None:
        geometry = hybrid_bundle.meta.geometry
        assert (geometry.sample_rate, geometry.hop_samples, geometry.subsampling_factor) == (16000, 160, 8)
        assert geometry.causal_subsampling
        assert geometry.max_feature_frames == hybrid_bundle.meta.encoder.max_feature_frames
