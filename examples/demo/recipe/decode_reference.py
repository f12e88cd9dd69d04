"""Records what NeMo itself decodes: the token ids that nemotrt is tested against.

    manifest, both checkpoints -> NeMo, greedy, no dither, pad_to 0, one clip at a time -> manifest with
        nemo_tdt, nemo_tdt_ids       of the TDT checkpoint
        nemo_rnnt, nemo_rnnt_ids, nemo_ctc, nemo_ctc_ids       of the hybrid checkpoint, look-ahead [70, 13]

One clip at a time, because NeMo's encoder lets the padding of a batch into its convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jiwer
import torch
import typer
from rich.console import Console
from rich.progress import track

from nemotrt.errors import UsageError
from recipe.command import run
from recipe.manifest import Utterance, read_manifest, row_of, write_manifest
from recipe.models import DECODERS, Decoded, Decoder, Kind, decode, load_model, quiet_nemo


def decode_clips(kind: Kind, checkpoint: Path, clips: Sequence[Utterance]) -> dict[Decoder, list[Decoded]]:
    """Every decoder of a checkpoint on every clip, in the order of the clips; progress on stderr."""
    model = load_model(kind, checkpoint)
    console = Console(stderr=True)
    decoded: dict[Decoder, list[Decoded]] = {decoder: [] for decoder in DECODERS[kind]}
    for clip in track(clips, f"decoding with {checkpoint.name}", console=console):
        waveform = torch.from_numpy(clip.samples())
        for decoder, hypotheses in decoded.items():
            hypotheses.extend(decode(model, [waveform], decoder=decoder))
    return decoded


def main(
    manifest: Annotated[Path, typer.Argument(help="Clips with their true texts.")],
    output: Annotated[Path, typer.Argument(help="Manifest to write.")],
    *,
    tdt: Annotated[Path, typer.Option(help="The TDT checkpoint.")],
    hybrid: Annotated[Path, typer.Option(help="The hybrid checkpoint.")],
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Decode clips with NeMo and write a manifest with its texts and token ids."""
    if output.exists():
        raise UsageError("the output is already there", where=output, fix="name another, or remove it")
    quiet_nemo()
    torch.set_num_threads(threads)
    clips = read_manifest(manifest)
    rows = [row_of(clip, manifest=output) for clip in clips]
    checkpoints: tuple[tuple[Kind, Path], ...] = (("tdt", tdt), ("hybrid-streaming", hybrid))
    for kind, checkpoint in checkpoints:
        for decoder, decoded in decode_clips(kind, checkpoint, clips).items():
            for row, one in zip(rows, decoded, strict=True):
                row[f"nemo_{decoder}"], row[f"nemo_{decoder}_ids"] = one.text, list(one.token_ids)
            wer = jiwer.wer([clip.text for clip in clips], [one.text for one in decoded])
            typer.echo(f"{decoder} WER {wer:.1%} on {len(clips)} clips")
    write_manifest(output, rows)


if __name__ == "__main__":
    run(main)
