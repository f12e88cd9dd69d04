"""Vocabulary files: ``vocab.txt``, ``tokens.txt`` (sherpa-onnx) and the SentencePiece model they must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from nemotrt.bundle import TOKENIZER_NAME, TOKENS_NAME, VOCAB_NAME
from nemotrt.errors import ArchiveError, ConfigError
from nemotrt.export.archive import NemoArchive
from nemotrt.export.config import ModelConfig

BLANK_PIECE = "<blk>"


def write_vocabulary(archive: NemoArchive, config: ModelConfig, folder: Path) -> tuple[str, ...]:
    """Write the files of a bundle that say what its tokens are, and return their names.

    Raises: as :func:`check_tokenizers`.
    """
    texts = {VOCAB_NAME: vocabulary_text(config.vocabulary), TOKENS_NAME: tokens_text(config.vocabulary)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if config.tokenizer.kind == "characters":
        return tuple(texts)
    models = [archive.artifact(reference) for reference in config.tokenizer.models]
    check_tokenizers(models, config.vocabulary, origin=archive.path)
    if config.tokenizer.kind == "aggregate":
        return tuple(texts)
    (folder / TOKENIZER_NAME).write_bytes(models[0])
    return (*texts, TOKENIZER_NAME)


def vocabulary_text(vocabulary: Sequence[str]) -> str:
    """One piece a line, in id order, without blank."""
    return "".join(f"{piece}\n" for piece in vocabulary)


def tokens_text(vocabulary: Sequence[str]) -> str:
    """``piece id`` lines, blank last: the format sherpa-onnx reads."""
    return "".join(f"{piece} {index}\n" for index, piece in enumerate([*vocabulary, BLANK_PIECE]))


def check_tokenizers(models: Sequence[bytes], vocabulary: Sequence[str], *, origin: Path) -> None:
    """Prove that the SentencePiece models have exactly the config's pieces, one model behind the other.

    Raises:
        ArchiveError: the tokenizer is not a SentencePiece model.
        ConfigError: its pieces are others than the config's vocabulary.
    """
    pieces = [piece for model in models for piece in _pieces(model, origin)]
    for index, (piece, expected) in enumerate(zip(pieces, vocabulary, strict=False)):
        if piece != expected:
            raise ConfigError(
                "the tokenizer and the config's vocabulary differ",
                where=f"{origin}: piece {index}",
                found=f"{piece!r} in the tokenizer, {expected!r} in the config",
                fix="the archive mixes two models: export the checkpoint from NeMo again",
            )
    if len(pieces) != len(vocabulary):
        raise ConfigError(
            "the tokenizer and the config's vocabulary differ in size",
            where=origin,
            found=f"{len(pieces)} pieces, {len(vocabulary)} in the config",
        )


def _pieces(model: bytes, origin: Path) -> list[str]:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    except (RuntimeError, TypeError, ValueError) as exc:
        raise ArchiveError("the tokenizer is not a SentencePiece model", where=origin, found=str(exc)[:200]) from exc
