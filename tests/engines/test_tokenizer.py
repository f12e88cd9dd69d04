"""Token ids to text, against the SentencePiece models of the demo checkpoints and NeMo's rules."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import sentencepiece

from nemotrt.bundle import TOKENIZER_NAME, VOCAB_NAME, Bundle, BundleMeta, EncoderSpec, MelSpec, TokenizerKind
from nemotrt.engines.tokenizer import Tokenizer, tokenizer_from_bundle
from nemotrt.errors import BundleError

SENTENCES = ["turn it off, please.", "it's on, isn't it?", "play the music", "off and on."]


@pytest.fixture(scope="module")
def model() -> bytes:
    """A small SentencePiece model with punctuation."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=content,
        vocab_size=40,
        model_type="bpe",
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return content.getvalue()


def pieces_of(model: bytes) -> tuple[str, ...]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return tuple(processor.id_to_piece(token) for token in range(processor.get_piece_size()))


def bundle_with(folder: Path, *, pieces: tuple[str, ...], kind: TokenizerKind) -> Bundle:
    """A bundle of no components: vocabulary and metadata are all that a tokenizer reads."""
    (folder / VOCAB_NAME).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    meta = BundleMeta(
        schema_version=1,
        name="vocabulary",
        family="fastconformer-ctc",
        precision="fp32",
        components={},
        mel=MelSpec(
            sample_rate=16000,
            features=80,
            n_fft=512,
            window_samples=400,
            hop_samples=160,
            normalize="none",
            preemphasis=None,
        ),
        encoder=EncoderSpec(
            layers=1,
            d_model=8,
            heads=1,
            feed_forward=8,
            conv_kernel=3,
            features=80,
            subsampling_factor=8,
            causal_subsampling=False,
            max_encoder_frames=100,
            max_feature_frames=800,
            attention_context=(-1, -1),
            attention_style="regular",
        ),
        transducer=None,
        vocabulary_size=len(pieces),
        blank_id=len(pieces),
        tokenizer=kind,
        checkpoint_sha256="0" * 64,
        tools={},
        files={},
    )
    return Bundle(folder, meta)


def test_sentences_come_back(tmp_path: Path, model: bytes):
    (tmp_path / TOKENIZER_NAME).write_bytes(model)
    tokenizer = tokenizer_from_bundle(bundle_with(tmp_path, pieces=pieces_of(model), kind="sentencepiece"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for sentence in SENTENCES:
        assert tokenizer.text(processor.encode(sentence)) == sentence
    assert tokenizer.text([]) == ""


def test_the_unknown_piece_is_shown_as_sentencepiece_shows_it(tmp_path: Path, model: bytes):
    (tmp_path / TOKENIZER_NAME).write_bytes(model)
    tokenizer = tokenizer_from_bundle(bundle_with(tmp_path, pieces=pieces_of(model), kind="sentencepiece"))
    assert "\u2047" in tokenizer.text([0])


def test_characters_are_joined(tmp_path: Path):
    tokenizer = tokenizer_from_bundle(bundle_with(tmp_path, pieces=("a", " ", "b"), kind="characters"))
    assert tokenizer.text([0, 1, 2]) == "a b"


def test_the_languages_of_an_aggregate_tokenizer_are_written_as_nemo_writes_them(tmp_path: Path, model: bytes):
    """Oracle: NeMo's own aggregate of the same model twice. It leaves the space that begins the first word."""
    tokenizers = pytest.importorskip("nemo.collections.common.tokenizers")
    (tmp_path / TOKENIZER_NAME).write_bytes(model)
    pieces = pieces_of(model)
    one = tokenizers.SentencePieceTokenizer(str(tmp_path / TOKENIZER_NAME))
    nemos = tokenizers.AggregateTokenizer({"en": one, "es": one})
    tokenizer = tokenizer_from_bundle(bundle_with(tmp_path, pieces=(*pieces, *pieces), kind="aggregate"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for first, second in zip(SENTENCES, reversed(SENTENCES), strict=True):
        ids = [*processor.encode(first), *(len(pieces) + token for token in processor.encode(second))]
        assert tokenizer.text(ids) == f"{first} {second}" == nemos.ids_to_text(ids).strip()


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        (("a", ",", "."), "a , a .", "a, a."),
        (("a", ","), "a  , a .", "a , a ."),  # one space, and only before marks of the vocabulary
        (("\u2581,", "<.>", "[.]", "##."), "a , a .", "a , a ."),  # pieces that are names or begin a word
        (("it's", "-"), "it 's a - b", "it's a- b"),
        (("a", "b"), "a , b", "a , b"),
    ],
)
def test_a_space_before_punctuation_goes_as_in_nemo(pieces: tuple[str, ...], text: str, expected: str):
    utils = pytest.importorskip("nemo.collections.asr.parts.utils.tokenizer_utils")
    marks = utils.extract_punctuation_from_vocab(list(pieces))
    nemos = re.sub("(\\s)(" + "|".join(map(re.escape, marks)) + ")", r"\2", text) if marks else text
    assert Tokenizer(pieces, lambda ids: text).text([0]) == nemos == expected


@pytest.mark.parametrize("token", [-1, 3])
def test_an_id_outside_of_the_vocabulary_is_refused(token: int):
    with pytest.raises(BundleError, match="not in the bundle's vocabulary"):
        Tokenizer(("a", "b", "c"), lambda ids: "").text([0, token])


@pytest.mark.parametrize("content", [None, b"", b"not a model" * 50])
def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / TOKENIZER_NAME).write_bytes(content)
    with pytest.raises(BundleError, match="SentencePiece") as caught:
        tokenizer_from_bundle(bundle_with(tmp_path, pieces=("a",), kind="sentencepiece"))
    assert caught.value.where == str(tmp_path / TOKENIZER_NAME)


def test_a_model_of_another_vocabulary_is_refused(tmp_path: Path, model: bytes):
    (tmp_path / TOKENIZER_NAME).write_bytes(model)
    pieces = pieces_of(model)
    for other in (pieces[:-1], pieces[::-1]):
        with pytest.raises(BundleError, match="different models"):
            tokenizer_from_bundle(bundle_with(tmp_path, pieces=other, kind="sentencepiece"))
