"""Token ids to text, exactly as NeMo writes it.

    ids -> SentencePiece (or joined characters, or joined pieces) -> no space before punctuation of the vocabulary

The last step is NeMo's: models trained with punctuation may spell a mark as a word of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from nemotrt.bundle import TOKENIZER_NAME, Bundle
from nemotrt.errors import BundleError

# Pieces that are names, not spelling: [PAD], <unk>, ##suffix, and whatever begins a word.
_SPECIAL_PIECE = re.compile(r"\[.*\]$|<.*>$|##|▁|\s*$")


class Tokenizer:
    """Text of token ids. Made by :func:`tokenizer_from_bundle`."""

    def __init__(self, pieces: Sequence[str], detokenize: Callable[[list[int]], str]) -> None:
        self._size = len(pieces)
        self._detokenize = detokenize
        self._space_before_punctuation = _space_before_punctuation(pieces)

    def text(self, token_ids: Iterable[int]) -> str:
        """The text of ``token_ids`` (without blanks); the empty text for none.

        Raises:
            BundleError: an id that is not in the vocabulary.
        """
        ids = list(token_ids)
        strangers = [token for token in ids if not 0 <= token < self._size]
        if strangers:
            raise BundleError(
                "a token id is not in the bundle's vocabulary",
                found=f"{strangers[0]}, the ids are 0 to {self._size - 1}",
                fix="use the token ids of a model with this bundle's vocabulary",
            )
        text = self._detokenize(ids)
        pattern = self._space_before_punctuation
        return text if pattern is None else pattern.sub(r"\1", text)


def tokenizer_from_bundle(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer: its SentencePiece model, the characters of its vocabulary, or its pieces.

    An aggregate tokenizer writes the pieces of all its languages alike, so their models are not needed.

    Raises:
        BundleError: the SentencePiece model is missing, unreadable, or not the one of the vocabulary.
    """
    pieces = bundle.vocabulary()
    if bundle.meta.tokenizer == "characters":
        return Tokenizer(pieces, lambda ids: "".join(pieces[token] for token in ids))
    if bundle.meta.tokenizer == "aggregate":
        return Tokenizer(pieces, lambda ids: "".join(pieces[token] for token in ids).replace("▁", " ").strip())
    processor = _sentencepiece(bundle.path / TOKENIZER_NAME, pieces)
    return Tokenizer(pieces, lambda ids: str(processor.decode(ids)))


def _sentencepiece(path: Path, pieces: Sequence[str]) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except (OSError, RuntimeError) as exc:
        raise BundleError(
            f"{TOKENIZER_NAME} is not a readable SentencePiece model",
            where=path,
            found=exc,
            fix="export the checkpoint again",
        ) from exc
    own_pieces = [processor.id_to_piece(token) for token in range(processor.get_piece_size())]
    if own_pieces != list(pieces):
        raise BundleError(
            f"{TOKENIZER_NAME} and the vocabulary are of different models",
            where=path,
            found=f"{len(own_pieces)} pieces in the model, {len(pieces)} in the vocabulary, or another order",
            fix="export the checkpoint again",
        )
    return processor


def _space_before_punctuation(pieces: Iterable[str]) -> re.Pattern[str] | None:
    """One white space before a punctuation mark that the model can spell, as NeMo's decoding removes it."""
    marks = {
        character
        for piece in pieces
        if not _SPECIAL_PIECE.match(piece)
        for character in piece
        if unicodedata.category(character).startswith("P")
    }
    if not marks:
        return None
    return re.compile(rf"\s([{re.escape(''.join(sorted(marks)))}])")
