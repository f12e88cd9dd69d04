"""What an export may be asked for: one decoder, fixed shapes, another opset, chunks that overlap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from nemo_oracle import NemoModel
from onnx_sessions import Graph

from nemotrt.bundle import Bundle, CacheLayout
from nemotrt.engines.audio import read_clips, read_waveform
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.streaming import StreamingEncoder
from nemotrt.engines.transcriber import Decoder, Transcriber
from nemotrt.errors import AudioError, UsageError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint
from nemotrt.export.options import OPSETS

TOLERANCE = 1e-5


class TestADecoder:
    @pytest.mark.parametrize(
        ("decoder", "components"),
        [
            ("ctc", {"preprocessor", "ctc", "ctc_nomask"}),
            ("rnnt", {"preprocessor", "encoder", "encoder_nomask", "predictor", "joint"}),
        ],
    )
    def test_of_a_hybrid_gets_its_components_only(
        self, hybrid_checkpoint: Path, tmp_path: Path, decoder: Decoder, components: set[str]
    ) -> None:
        bundle = export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=ExportOptions(decoder=decoder))
        assert bundle.meta.components.keys() == components
        assert bundle.meta.exported.decoder == decoder
        with Transcriber(bundle, threads=1) as transcriber:
            assert transcriber.decoder == decoder

    @pytest.mark.parametrize("decoder", ["ctc", "rnnt"])
    def test_that_the_model_does_not_have_is_refused(
        self, tdt_checkpoint: Path, tmp_path: Path, decoder: Decoder
    ) -> None:
        with pytest.raises(UsageError, match=f"no {decoder} decoder") as refusal:
            export_checkpoint(tdt_checkpoint, tmp_path / "m", options=ExportOptions(decoder=decoder))
        assert refusal.value.fix == "choose from: tdt"
        assert list(tmp_path.iterdir()) == []

    def test_beside_components_is_a_contradiction(self) -> None:
        with pytest.raises(UsageError, match="both named"):
            ExportOptions(decoder="ctc", components=("ctc",))


class TestAnOpset:
    @pytest.mark.parametrize("opset", OPSETS)
    def test_changes_no_number(self, hybrid_checkpoint: Path, tmp_path: Path, opset: int) -> None:
        options = ExportOptions(components=("all",), opset=opset)
        bundle = export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=options)
        reference = export_checkpoint(hybrid_checkpoint, tmp_path / "r", options=ExportOptions(components=("all",)))
        for name in bundle.meta.components:
            onnx.checker.check_model(str(bundle.graph_path(name)), full_check=True)
            model = onnx.load(str(bundle.graph_path(name)), load_external_data=False)
            assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
            feeds = random_feeds(bundle, name)
            for found, wanted in zip(Graph.of(bundle, name)(**feeds), Graph.of(reference, name)(**feeds), strict=True):
                np.testing.assert_array_equal(found, wanted)

    @pytest.mark.parametrize("opset", [0, 17, 24])
    def test_that_is_not_written_is_refused(self, opset: int) -> None:
        with pytest.raises(UsageError, match="opset") as refusal:
            ExportOptions(opset=opset)
        assert refusal.value.fix == "choose from 18 to 23"


def random_feeds(bundle: Bundle, name: str) -> dict[str, np.ndarray]:
    """Any numbers that the component takes, for axes of 2 but for time."""
    sizes = {"batch": 2, "samples": 3200, "frames": 50, "encoder_frames": 7, "joint_frames": 3, "tokens": 2}
    rng, feeds = np.random.default_rng(0), {}
    for spec in bundle.component(name).inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        if spec.dtype == "float32":
            feeds[spec.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[spec.name] = rng.integers(1, 4, shape).astype(spec.dtype)
    return feeds


class TestFixedShapes:
    SECONDS = 4.0

    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        options = ExportOptions(components=("all",), fixed_seconds=cls.SECONDS)
        return export_checkpoint(hybrid_checkpoint, tmp_path_factory.mktemp("fixed") / "m", options=options)

    def test_leave_no_axis_free(self, bundle: Bundle) -> None:
        assert bundle.meta.fixed_feature_frames == 400
        for name, spec in bundle.meta.components.items():
            model = onnx.load(str(bundle.graph_path(name)), load_external_data=False)
            values = [*model.graph.input, *model.graph.output]
            assert all(axis.HasField("dim_value") for value in values for axis in value.type.tensor_type.shape.dim)
            assert all(type(axis) is int for tensor in (*spec.inputs, *spec.outputs) for axis in tensor.shape)

    def test_need_no_more_positions_than_the_clip_has(self, bundle: Bundle, hybrid_bundle: Bundle) -> None:
        assert bundle.meta.encoder.max_encoder_frames == 51
        sizes = [one.component("encoder").parameters for one in (bundle, hybrid_bundle)]
        assert sizes[0] < 0.6 * sizes[1]

    @pytest.mark.parametrize("decoder", ["rnnt", "ctc"])
    def test_transcribe_as_free_ones(
        self, bundle: Bundle, hybrid_bundle: Bundle, demo_manifest: Path, decoder: Decoder
    ) -> None:
        waveforms = [read_waveform(clip.path, sample_rate=16000) for clip in read_clips(demo_manifest)]
        short = [waveform for waveform in waveforms if waveform.seconds <= self.SECONDS]
        assert len(short) > 5
        with (
            Transcriber(bundle, decoder=decoder, threads=1) as fixed,
            Transcriber(hybrid_bundle, decoder=decoder, threads=1) as free,
        ):
            for found, wanted in zip(fixed.transcribe(short), free.transcribe(short), strict=True):
                assert found.hypothesis == wanted.hypothesis
                assert found.encoder_output.shape == wanted.encoder_output.shape

    def test_refuse_a_longer_clip(self, bundle: Bundle, demo_manifest: Path) -> None:
        waveforms = [read_waveform(clip.path, sample_rate=16000) for clip in read_clips(demo_manifest)]
        (long, *_) = [waveform for waveform in waveforms if waveform.seconds > self.SECONDS + 0.01]
        with Transcriber(bundle, threads=1) as fixed, pytest.raises(AudioError, match="longer than the model takes"):
            fixed.transcribe([long])

    @pytest.mark.parametrize("seconds", [0.0, -1.0, 0.001])
    def test_of_nothing_are_refused(self, hybrid_checkpoint: Path, tmp_path: Path, seconds: float) -> None:
        with pytest.raises(UsageError, match="longest input"):
            export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=ExportOptions(fixed_seconds=seconds))

    def test_longer_than_the_longest_input_are_refused(self, hybrid_checkpoint: Path, tmp_path: Path) -> None:
        options = ExportOptions(fixed_seconds=20.0, choices=ModelChoices(max_seconds=10.0))
        with pytest.raises(UsageError, match="does not fit the model"):
            export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=options)


class TestChunksThatOverlap:
    LOOKAHEAD, DROP = 6, 3

    def options(self, *, cache: CacheLayout, drop: int) -> ExportOptions:
        return ExportOptions(
            components=("encoder", "encoder_streaming"),
            choices=ModelChoices(lookahead=self.LOOKAHEAD),
            cache=cache,
            cache_drop=drop,
        )

    def test_keep_in_the_cache_what_nemo_keeps(
        self, hybrid_checkpoint: Path, hybrid_nemo: NemoModel, tmp_path: Path, figure: Callable[[str], None]
    ) -> None:
        """One step in the middle of a stream: there NeMo's own streaming has no first chunk to get wrong."""
        import torch

        bundle = export_checkpoint(
            hybrid_checkpoint, tmp_path / "m", options=self.options(cache="inputs", drop=self.DROP)
        )
        streaming, spec = bundle.meta.streaming, bundle.component("encoder_streaming")
        assert streaming is not None
        rng = np.random.default_rng(0)
        feeds = {
            tensor.name: rng.standard_normal([1 if n == "batch" else int(n) for n in tensor.shape]).astype(np.float32)
            for tensor in spec.inputs
            if tensor.dtype == "float32"
        }
        feeds["length"] = np.array([streaming.window_feature_frames])
        feeds["cache_last_channel_len"] = np.array([streaming.left_context_frames])
        runner = OnnxRuntimeRunner(bundle.graph_path("encoder_streaming"), spec=spec, threads=1)
        found = runner.run(feeds)

        encoder = hybrid_nemo.encoder_module
        encoder.set_default_att_context_size([70, self.LOOKAHEAD])
        encoder.streaming_cfg.cache_drop_size = self.DROP
        for layer in encoder.layers:
            layer.self_attn.cache_drop_size = layer.conv.depthwise_conv.cache_drop_size = self.DROP
        try:
            with torch.inference_mode():
                wanted = encoder.forward_internal(
                    *(torch.from_numpy(feeds[name].copy()) for name in ("audio_signal", "length")),
                    cache_last_channel=torch.from_numpy(feeds["cache_last_channel"].copy()),
                    cache_last_time=torch.from_numpy(feeds["cache_last_time"].copy()),
                    cache_last_channel_len=torch.from_numpy(feeds["cache_last_channel_len"].copy()),
                )
        finally:
            encoder.set_default_att_context_size([70, 13])
        names = ("encoder_output", "encoded_lengths", "cache_last_channel_out", "cache_last_time_out")
        worst = 0.0
        for name, value in zip(names, wanted, strict=False):
            assert found[name].shape == tuple(value.shape), name
            worst = max(worst, float(np.abs(found[name] - value.numpy()).max()))
        figure(f"one step with {self.DROP} frames dropped from the caches: {worst:.1e} from NeMo")
        assert worst <= TOLERANCE
        assert found["cache_last_channel_len_out"].tolist() == [streaming.left_context_frames]

    def test_count_in_the_cache_what_it_keeps(self, hybrid_checkpoint: Path, tmp_path: Path) -> None:
        bundle = export_checkpoint(
            hybrid_checkpoint, tmp_path / "m", options=self.options(cache="inputs", drop=self.DROP)
        )
        spec = bundle.component("encoder_streaming")
        runner = OnnxRuntimeRunner(bundle.graph_path("encoder_streaming"), spec=spec, threads=1)
        shapes = {tensor.name: [1 if n == "batch" else int(n) for n in tensor.shape] for tensor in spec.inputs}
        feeds = {tensor.name: np.zeros(shapes[tensor.name], tensor.dtype) for tensor in spec.inputs}
        feeds["length"][:] = shapes["audio_signal"][2]
        kept = []
        for _ in range(19):
            outputs = runner.run(feeds)
            feeds |= {name: outputs[f"{name}_out"] for name in feeds if name.startswith("cache")}
            kept.append(int(feeds["cache_last_channel_len"][0]))
        assert kept == [min((self.LOOKAHEAD + 1 - self.DROP) * (step + 1), 70) for step in range(19)]

    @pytest.mark.parametrize("cache", ["inputs", "kv"])
    def test_give_every_frame_once(self, hybrid_checkpoint: Path, tmp_path: Path, cache: CacheLayout) -> None:
        bundle = export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=self.options(cache=cache, drop=self.DROP))
        spec = bundle.meta.encoder
        for frames in (1, 30, 57, 89, 121, 200, 333):
            features = np.random.default_rng(0).standard_normal((1, 80, frames)).astype(np.float32)
            runner = OnnxRuntimeRunner(bundle.graph_path("encoder_streaming"), threads=1)
            stream = StreamingEncoder(bundle, runner)
            found = [stream.push(features), stream.finish()]
            assert sum(part.shape[2] for part in found) == spec.encoder_frames_from_feature_frames(frames), frames
            assert stream.finish().shape[2] == 0

    def test_in_either_cache_are_the_same(self, hybrid_checkpoint: Path, tmp_path: Path) -> None:
        features = np.random.default_rng(0).standard_normal((2, 80, 700)).astype(np.float32)
        found = []
        for cache in ("inputs", "kv"):
            options = self.options(cache=cache, drop=self.DROP)
            bundle = export_checkpoint(hybrid_checkpoint, tmp_path / cache, options=options)
            stream = StreamingEncoder(
                bundle, OnnxRuntimeRunner(bundle.graph_path("encoder_streaming"), threads=1), batch=2
            )
            found.append(np.concatenate([stream.push(features), stream.finish()], axis=2))
        assert np.abs(found[0] - found[1]).max() <= TOLERANCE

    @pytest.mark.parametrize("drop", [-1, 7, 100])
    def test_that_bring_nothing_new_are_refused(self, hybrid_checkpoint: Path, tmp_path: Path, drop: int) -> None:
        with pytest.raises(UsageError, match="something new"):
            export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=self.options(cache="inputs", drop=drop))

    def test_without_a_cache_are_refused(self, hybrid_checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="nothing that has a cache"):
            export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=ExportOptions(cache_drop=3))
