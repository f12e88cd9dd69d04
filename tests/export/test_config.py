"""Configs: what is refused, by which name, and the defaults of what is left out. Oracle of the defaults: NeMo."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import archives
import pytest
from nemo_oracle import require_nemo

from nemotrt.errors import ArchiveError, CheckpointError, ConfigError, UnsupportedModelError, UsageError
from nemotrt.export import ModelChoices
from nemotrt.export.config import ModelConfig, model_config
from nemotrt.export.vocabulary import check_tokenizers

ORIGIN = Path("m.nemo")
_MODULES = "nemo.collections.asr.modules"


@pytest.fixture(scope="module")
def tdt(tdt_members: archives.Members) -> dict[str, Any]:
    return archives.config_of(tdt_members)


@pytest.fixture(scope="module")
def hybrid(hybrid_members: archives.Members) -> dict[str, Any]:
    return archives.config_of(hybrid_members)


def refused(config: dict[str, Any], error: type[CheckpointError], *, naming: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        model_config(config, origin=ORIGIN)
    assert type(caught.value) is error
    assert naming in str(caught.value)
    return caught.value


def read(config: dict[str, Any], key: str, value: object) -> ModelConfig:
    return model_config(archives.changed(config, key, value), origin=ORIGIN)


def test_the_demo_configs_are_accepted(tdt: dict[str, Any], hybrid: dict[str, Any]) -> None:
    assert model_config(tdt, origin=ORIGIN).family == "fastconformer-tdt"
    assert model_config(hybrid, origin=ORIGIN).family == "fastconformer-hybrid-rnnt-ctc"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder._target_", f"{_MODULES}.SqueezeformerEncoder"),
        ("encoder._target_", f"{_MODULES}.ConformerEncoderAdapter"),
        ("decoder._target_", f"{_MODULES}.StatelessTransducerDecoder"),
        ("joint._target_", f"{_MODULES}.SampledRNNTJoint"),
        ("encoder.subsampling", "vggnet"),
        ("encoder.subsampling", "stacking"),
        ("encoder.subsampling_factor", 16),
        ("encoder.subsampling_factor", 8.0),
        ("encoder.self_attention_model", "rel_pos_local_attn"),
        ("encoder.reduction", "pooling"),
        ("encoder.feat_out", 64),
        ("encoder.att_context_style", "chunked_limited_with_rc"),
        ("encoder.conv_norm_type", "rms_norm"),
        ("encoder.conv_norm_type", "group_norm"),
        ("preprocessor.log", False),
        ("preprocessor.mag_power", 1.0),
        ("preprocessor.frame_splicing", 3),
        ("preprocessor.exact_pad", True),
        ("preprocessor.log_zero_guard_type", "clamp"),
        ("preprocessor.pad_value", -1.0),
        ("preprocessor.normalize", "all_features"),
        ("preprocessor.normalize", {"fixed_mean": [0.0], "fixed_std": [1.0]}),
        ("preprocessor.n_fft", 511),
        ("preprocessor.n_fft", 256),
        ("decoder.blank_as_pad", False),
        ("decoder.normalization_mode", "layer"),
        ("decoder.prednet.rnn_hidden_size", 256),
        ("joint.jointnet.activation", "gelu"),
        ("joint.jointnet.encoder_hidden", 64),
        ("joint.jointnet.pred_hidden", 64),
        ("tokenizer.type", "wpe"),
    ],
)
def test_what_is_not_built_is_refused_by_its_key(tdt: dict[str, Any], key: str, value: object) -> None:
    refused(archives.changed(tdt, key, value), UnsupportedModelError, naming=key)


@pytest.mark.parametrize("piece", ["", "a\nb", "\n", "a\rb"])
def test_a_piece_that_is_not_one_line_is_refused(tdt: dict[str, Any], piece: str) -> None:
    vocabulary = [piece, *tdt["joint"]["vocabulary"][1:]]
    config = archives.changed(tdt, "joint.vocabulary", vocabulary)
    refused(config, UnsupportedModelError, naming="joint.vocabulary")


def test_an_attention_decoder_is_refused(tdt: dict[str, Any]) -> None:
    refused({**tdt, "transf_decoder": {}}, UnsupportedModelError, naming="transf_decoder")


@pytest.mark.parametrize(("subsampling", "name"), [("dw_striding", "fastconformer"), ("striding", "conformer")])
def test_every_head_of_both_architectures_has_a_family(
    tdt: dict[str, Any], hybrid: dict[str, Any], subsampling: str, name: str
) -> None:
    tdt, hybrid = (archives.changed(config, "encoder.subsampling", subsampling) for config in (tdt, hybrid))
    configs = {
        "tdt": tdt,
        "hybrid-tdt-ctc": {**tdt, "aux_ctc": hybrid["aux_ctc"]},
        "hybrid-rnnt-ctc": hybrid,
        "rnnt": {key: value for key, value in hybrid.items() if key != "aux_ctc"},
        "ctc": {**hybrid, "decoder": hybrid["aux_ctc"]["decoder"], "joint": None, "aux_ctc": None},
    }
    families = {head: model_config(config, origin=ORIGIN).family for head, config in configs.items()}
    assert families == {head: f"{name}-{head}" for head in configs}


def test_a_look_ahead_that_was_trained_is_chosen_and_another_refused(hybrid: dict[str, Any]) -> None:
    chosen = model_config(hybrid, origin=ORIGIN, choices=ModelChoices(lookahead=1))
    assert chosen.encoder.spec.attention_context == (70, 1)
    with pytest.raises(UsageError, match="not trained with this look-ahead") as refusal:
        model_config(hybrid, origin=ORIGIN, choices=ModelChoices(lookahead=5))
    assert refusal.value.fix == "choose from: 13, 6, 1, 0"


def test_a_hybrid_with_two_vocabularies_is_refused(hybrid: dict[str, Any]) -> None:
    vocabulary = hybrid["joint"]["vocabulary"]
    config = archives.changed(hybrid, "aux_ctc.decoder.vocabulary", vocabulary[::-1])
    refused(config, UnsupportedModelError, naming="aux_ctc.decoder.vocabulary")


def test_an_auxiliary_head_of_another_kind_is_refused(hybrid: dict[str, Any]) -> None:
    config = archives.changed(hybrid, "aux_ctc.decoder._target_", f"{_MODULES}.MSDDDecoder")
    refused(config, UnsupportedModelError, naming="aux_ctc.decoder._target_")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("encoder.d_model", value) for value in (archives.REMOVED, None, "128", 128.0, True, 0, -1, 127, 1 << 15)),
        ("encoder.d_model", "${model_defaults.enc_hidden}"),
        ("encoder.d_model", [1] * 100_000),
        ("encoder.n_layers", 0),
        ("encoder.n_layers", 100_000),
        ("encoder.n_heads", 3),
        ("encoder.feat_in", 64),
        ("encoder.use_bias", "no"),
        ("encoder.xscaling", 1),
        ("encoder.pos_emb_max_len", 0),
        ("encoder.conv_kernel_size", 8),
        ("encoder.conv_context_size", "both"),
        ("encoder.conv_context_size", [4, 3]),
        ("encoder.conv_context_size", [-1, 9]),
        ("encoder.conv_context_size", [4.0, 4.0]),
        ("encoder.att_context_size", [1]),
        ("encoder.att_context_size", [1, -2]),
        ("encoder.att_context_size", ["a", "b"]),
        ("encoder.att_context_size", [[True, 1]]),
        ("encoder.att_context_size", [1 << 70, 1]),
        ("preprocessor.sample_rate", 8000),
        *(("preprocessor.window_size", value) for value in (float("nan"), float("inf"), 1e308, -1.0, 0, "25ms", None)),
        *(("preprocessor.window_stride", value) for value in (0.0, -0.01, 0.03, float("-inf"), 16**300)),
        ("preprocessor.preemph", "yes"),
        ("preprocessor.log_zero_guard_value", "tiny"),
        ("preprocessor.n_fft", "512"),
        ("decoder.prednet", None),
        ("decoder.prednet.pred_hidden", None),
        ("decoder.prednet.pred_rnn_layers", 0),
        ("joint.vocabulary", "abc"),
        ("joint.vocabulary", [1, 2]),
        ("joint.vocabulary", []),
        ("joint.num_classes", 95),
        ("joint.num_extra_outputs", -1),
        ("joint.num_extra_outputs", 4),
        ("decoding.durations", [0, 1, 2, 3]),
        ("decoding.durations", [0, 1, 2, 3, -4]),
        ("decoding.durations", [0, 0, 0, 0, 0]),
        ("decoding.durations", [0, 1, 2, 3, 1 << 70]),
        ("decoding.durations", "01234"),
        ("decoding.greedy.max_symbols", 0),
        ("tokenizer.model_path", None),
        ("tokenizer", []),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_by_its_key(tdt: dict[str, Any], key: str, value: object) -> None:
    """And shown in a few lines, whatever its size."""
    error = refused(archives.changed(tdt, key, value), ConfigError, naming=key.rsplit(".", 1)[-1])
    assert len(str(error)) < 1000


@pytest.mark.parametrize("key", ["encoder.d_model", "preprocessor.preemph", "preprocessor.window_size"])
def test_a_number_that_python_refuses_to_write_is_refused_by_its_key(tdt: dict[str, Any], key: str) -> None:
    refused(archives.changed(tdt, key, 16**5000), ConfigError, naming=key)


def test_an_interpolation_that_was_never_resolved_is_called_one(tdt: dict[str, Any]) -> None:
    config = archives.changed(tdt, "encoder.d_model", "${model_defaults.enc_hidden}")
    assert "interpolation" in str(refused(config, ConfigError, naming="encoder.d_model"))


@pytest.mark.parametrize("context", [[70, -1], [71, 13], [5, 1]])
def test_chunks_that_do_not_tile_the_left_context_are_refused(hybrid: dict[str, Any], context: list[int]) -> None:
    config = archives.changed(hybrid, "encoder.att_context_size", context)
    refused(config, ConfigError, naming="att_context_size")


@pytest.mark.parametrize("section", ["encoder", "preprocessor", "decoder", "joint"])
@pytest.mark.parametrize("value", [archives.REMOVED, None, [], "text", {}])
def test_a_missing_section_is_a_named_error(tdt: dict[str, Any], section: str, value: object) -> None:
    if section == "preprocessor" and value in (archives.REMOVED, None):
        assert read(tdt, section, value).front_end is None
        return
    with pytest.raises(CheckpointError):
        read(tdt, section, value)


class TestAModelOfItsOwnFeatures:
    @pytest.mark.parametrize("target", [None, f"{_MODULES}.AudioToMFCCPreprocessor", "my.package.PenStrokes"])
    def test_has_no_front_end_and_says_so(self, tdt: dict[str, Any], target: str | None) -> None:
        found = read(tdt, "preprocessor", None if target is None else {"_target_": target})
        assert found.mel is None
        (note,) = found.notes
        assert "no front end" in note
        assert (target or "no preprocessor").rsplit(".", 1)[-1] in note

    def test_may_have_any_number_of_features_and_no_subsampling(self, tdt: dict[str, Any]) -> None:
        config = archives.changed(archives.changed(tdt, "preprocessor", archives.REMOVED), "encoder.feat_in", 7)
        config = archives.changed(config, "encoder.subsampling_factor", 1)
        found = model_config(config, origin=ORIGIN).encoder
        assert (found.spec.features, found.subsampling, found.spec.max_feature_frames) == (7, "linear", 5000)


class TestLocalAttention:
    LOCAL = "rel_pos_local_attn"

    def test_of_a_symmetric_window_is_attention_under_a_mask(self, tdt: dict[str, Any]) -> None:
        config = archives.changed(tdt, "encoder.self_attention_model", self.LOCAL)
        found = model_config(archives.changed(config, "encoder.att_context_size", [128, 128]), origin=ORIGIN)
        assert (found.encoder.positions, found.encoder.spec.attention_context) == ("rel_pos", (128, 128))
        assert any(self.LOCAL in note and "square" in note for note in found.notes)

    @pytest.mark.parametrize("window", [[5, 3], [3, 5], [-1, -1], [0, 0], [[4, 4], [8, 8]]])
    def test_of_any_other_window_is_refused(self, tdt: dict[str, Any], window: object) -> None:
        config = archives.changed(tdt, "encoder.self_attention_model", self.LOCAL)
        config = archives.changed(config, "encoder.att_context_size", window)
        refused(config, UnsupportedModelError, naming=self.LOCAL)

    def test_with_global_tokens_is_refused(self, tdt: dict[str, Any]) -> None:
        config = archives.changed(tdt, "encoder.self_attention_model", self.LOCAL)
        config = archives.changed(config, "encoder.att_context_size", [8, 8])
        refused(archives.changed(config, "encoder.global_tokens", 1), UnsupportedModelError, naming="global_tokens")


class TestChoices:
    @pytest.mark.parametrize(("seconds", "frames"), [(40, 500), (100.04, 1251), (400, 5000), (1000, 12500)])
    def test_the_position_table_holds_the_longest_input(self, tdt: dict[str, Any], seconds: float, frames: int) -> None:
        spec = model_config(tdt, origin=ORIGIN, choices=ModelChoices(max_seconds=seconds)).encoder.spec
        assert spec.max_encoder_frames == frames
        assert spec.max_feature_frames >= round(seconds * 100)

    @pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.001, 1e9])
    def test_an_impossible_longest_input_is_refused(self, tdt: dict[str, Any], seconds: float) -> None:
        with pytest.raises(UsageError, match="longest input"):
            model_config(tdt, origin=ORIGIN, choices=ModelChoices(max_seconds=seconds))

    def test_the_left_context_replaces_the_trained_one(self, hybrid: dict[str, Any]) -> None:
        choices = ModelChoices(lookahead=6, left_context=28)
        assert model_config(hybrid, origin=ORIGIN, choices=choices).encoder.spec.attention_context == (28, 6)

    @pytest.mark.parametrize("frames", [0, -7, 27, 1 << 30])
    def test_a_left_context_that_is_no_number_of_chunks_is_refused(self, hybrid: dict[str, Any], frames: int) -> None:
        with pytest.raises(UsageError, match="cache"):
            model_config(hybrid, origin=ORIGIN, choices=ModelChoices(lookahead=6, left_context=frames))


class TestAnAggregateTokenizer:
    @staticmethod
    def config(tdt: dict[str, Any], **languages: dict[str, Any]) -> dict[str, Any]:
        return archives.changed(tdt, "tokenizer", {"type": "agg", "langs": languages})

    def test_names_one_model_a_language_in_the_order_of_their_ids(self, tdt: dict[str, Any]) -> None:
        config = self.config(
            tdt, es={"type": "bpe", "model_path": "nemo:es.model"}, en={"type": "bpe", "model_path": "nemo:en.model"}
        )
        found = model_config(config, origin=ORIGIN).tokenizer
        assert (found.kind, found.models) == ("aggregate", ("nemo:es.model", "nemo:en.model"))

    def test_of_word_pieces_is_refused(self, tdt: dict[str, Any]) -> None:
        refused(self.config(tdt, en={"type": "wpe"}), UnsupportedModelError, naming="tokenizer.langs.en.type")

    def test_without_languages_is_malformed(self, tdt: dict[str, Any]) -> None:
        refused(self.config(tdt), ConfigError, naming="tokenizer.langs")


class TestWhatIsRead:
    def test_the_first_of_several_contexts_is_the_one_of_inference(self, hybrid: dict[str, Any]) -> None:
        assert hybrid["encoder"]["att_context_size"][0] == [70, 13]
        assert model_config(hybrid, origin=ORIGIN).encoder.spec.attention_context == (70, 13)

    @pytest.mark.parametrize(
        ("value", "context"), [(None, (4, 4)), ("causal", (8, 0)), ([6, 2], (6, 2)), (archives.REMOVED, (4, 4))]
    )
    def test_the_context_of_the_convolution(self, tdt: dict[str, Any], value: object, context: tuple[int, int]) -> None:
        assert read(tdt, "encoder.conv_context_size", value).encoder.conv_context == context

    @pytest.mark.parametrize("value", ["NA", "none", None, ""])
    def test_names_of_no_normalization(self, tdt: dict[str, Any], value: object) -> None:
        assert read(tdt, "preprocessor.normalize", value).mel.normalize == "none"

    def test_older_configs_call_the_symbol_limit_otherwise(self, tdt: dict[str, Any]) -> None:
        config = archives.changed(tdt, "decoding.greedy", {"max_symbols_per_step": 7})
        found = model_config(config, origin=ORIGIN).transducer
        assert found is not None
        assert found.spec.max_symbols_per_frame == 7

    @pytest.mark.parametrize("dropout", [0.0, 0.2, None, archives.REMOVED])
    def test_the_joints_last_matrix_is_called_after_its_place_behind_dropout(
        self, tdt: dict[str, Any], dropout: object
    ) -> None:
        """NeMo leaves the dropout module out where there is no dropout."""
        found = read(tdt, "joint.jointnet.dropout", dropout).transducer
        assert found is not None
        assert found.joint_out == ("joint_net.2" if dropout == 0.2 else "joint_net.1")

    @pytest.mark.parametrize(("seconds", "samples"), [(0.0125, 275), (0.025, 551)])
    def test_samples_are_cut_and_not_rounded(self, tdt: dict[str, Any], seconds: float, samples: int) -> None:
        """Oracle: NeMo's preprocessor, at a rate where the two differ."""
        require_nemo()
        from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

        options = {"sample_rate": 22050, "window_size": 0.05, "window_stride": seconds, "features": 8}
        featurizer = AudioToMelSpectrogramPreprocessor(**options).featurizer
        config = archives.changed(archives.changed(tdt, "sample_rate", 22050), "encoder.feat_in", 8)
        config["preprocessor"] = {"_target_": tdt["preprocessor"]["_target_"], **options}
        mel = model_config(config, origin=ORIGIN).mel
        assert mel.hop_samples == featurizer.hop_length == samples
        assert mel.window_samples == featurizer.win_length
        assert mel.n_fft == featurizer.n_fft


def test_what_a_config_leaves_out_is_what_nemo_makes_of_it(tdt: dict[str, Any]) -> None:
    require_nemo()
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor, ConformerEncoder

    def defaults(module: type) -> dict[str, Any]:
        return {name: parameter.default for name, parameter in inspect.signature(module.__init__).parameters.items()}

    mel_target = tdt["preprocessor"]["_target_"]
    encoder_target = tdt["encoder"]["_target_"]
    sparse = archives.changed(tdt, "preprocessor", {"_target_": mel_target})
    sparse["encoder"] = {
        "_target_": encoder_target, "feat_in": 64, "n_layers": 2, "d_model": 128, "subsampling": "dw_striding"
    }  # fmt: skip
    found = model_config(sparse, origin=ORIGIN)
    mel = defaults(AudioToMelSpectrogramPreprocessor)
    assert found.mel.sample_rate == mel["sample_rate"]
    assert found.mel.features == mel["features"]
    assert found.mel.window_samples == mel["window_size"] * mel["sample_rate"]
    assert found.mel.hop_samples == mel["window_stride"] * mel["sample_rate"]
    assert found.mel.normalize == mel["normalize"]
    assert found.mel.preemphasis == mel["preemph"]
    assert found.front_end is not None
    assert found.front_end.zero_guard == mel["log_zero_guard_value"]
    encoder, spec = defaults(ConformerEncoder), found.encoder.spec
    assert spec.subsampling_factor == encoder["subsampling_factor"]
    assert spec.causal_subsampling == encoder["causal_downsampling"]
    assert spec.heads == encoder["n_heads"]
    assert spec.feed_forward == 128 * encoder["ff_expansion_factor"]
    assert spec.conv_kernel == encoder["conv_kernel_size"]
    assert spec.max_encoder_frames == encoder["pos_emb_max_len"]
    assert spec.attention_style == encoder["att_context_style"]
    assert spec.attention_context == (-1, -1)
    assert encoder["att_context_size"] is None
    assert found.encoder.use_bias == encoder["use_bias"]
    assert found.encoder.xscaling == encoder["xscaling"]
    assert found.encoder.conv_norm == encoder["conv_norm_type"]
    assert encoder["subsampling_conv_channels"] == -1
    assert found.encoder.subsampling_channels == 128


def test_a_tokenizer_that_contradicts_the_vocabulary_is_refused_with_the_piece(
    tmp_path: Path, tdt: dict[str, Any], tdt_members: archives.Members, refusal: archives.Refusal
) -> None:
    vocabulary = list(tdt["joint"]["vocabulary"])
    vocabulary[7], vocabulary[8] = vocabulary[8], vocabulary[7]
    config = archives.changed(tdt, "joint.vocabulary", vocabulary)
    path = archives.write_archive(tmp_path / "m.nemo", archives.with_config(tdt_members, config))
    assert "piece 7" in str(refusal(path, ConfigError))


@pytest.mark.parametrize(
    ("content", "error"), [(b"", ConfigError), (b"not a model", ArchiveError), (bytes(1000), ArchiveError)]
)
def test_a_tokenizer_that_is_none_is_refused(
    tmp_path: Path,
    tdt_members: archives.Members,
    refusal: archives.Refusal,
    content: bytes,
    error: type[CheckpointError],
) -> None:
    members = {name: content if name.endswith("tokenizer.model") else data for name, data in tdt_members.items()}
    assert "tokenizer" in str(refusal(archives.write_archive(tmp_path / "m.nemo", members), error))


def test_a_tokenizer_of_another_size_is_refused(tdt_members: archives.Members, tdt: dict[str, Any]) -> None:
    model = next(data for name, data in tdt_members.items() if name.endswith("tokenizer.model"))
    vocabulary = tdt["joint"]["vocabulary"]
    check_tokenizers([model], vocabulary, origin=ORIGIN)
    for other in (vocabulary[:-1], [*vocabulary, "more"]):
        with pytest.raises(ConfigError, match="differ in size"):
            check_tokenizers([model], other, origin=ORIGIN)
