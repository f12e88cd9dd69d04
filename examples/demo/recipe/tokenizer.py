"""Trains the demo's SentencePiece BPE tokenizer on the texts of a manifest: 96 pieces, ``<unk>`` is id 0."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import sentencepiece
import typer

from nemotrt.errors import UsageError
from recipe.command import run
from recipe.manifest import read_manifest

PIECES = 96


def train_tokenizer(folder: Path, texts: list[str]) -> None:
    """Write NeMo's ``bpe`` tokenizer folder: ``tokenizer.model``, ``tokenizer.vocab`` and ``vocab.txt``.

    No sentence marks and no padding piece: the blank that NeMo appends is the only symbol without text.

    Raises:
        UsageError: too few different words for 96 pieces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(folder / "tokenizer"),
            model_type="bpe",
            vocab_size=PIECES,
            character_coverage=1.0,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as exc:
        raise UsageError(
            f"the texts do not give {PIECES} pieces",
            found=f"{len(texts)} texts: {exc}",
            fix="synthesize more utterances",
        ) from exc
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = "".join(f"{model.id_to_piece(i)}\n" for i in range(PIECES))
    (folder / "vocab.txt").write_text(pieces, encoding="utf-8")


def main(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the training split.")],
    folder: Annotated[Path, typer.Argument(help="Folder for the tokenizer's files.")],
) -> None:
    """Train the tokenizer of both checkpoints."""
    train_tokenizer(folder, [utterance.text for utterance in read_manifest(manifest)])
    typer.echo(f"{folder / 'tokenizer.model'}: {PIECES} pieces")


if __name__ == "__main__":
    run(main)
