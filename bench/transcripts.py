"""What every system of a set of comparisons wrote for each clip, side by side, and how words differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemotrt.bench.results import Comparison, ErrorCount, Output, Transcript
from nemotrt.bench.word_errors import word_errors


def transcripts_from_comparisons(comparisons: Iterable[Comparison]) -> tuple[Transcript, ...]:
    """One transcript a clip, clips and systems in order of appearance. A system's name includes its decoder."""
    clips: dict[str, tuple[float, str | None]] = {}
    outputs: dict[str, dict[str, str]] = {}
    for comparison in comparisons:
        sides = (comparison.reference, comparison.candidate)
        reference, candidate = (f"{name}, {comparison.decoder}" for name in sides)
        for row in comparison.clips:
            clips.setdefault(row.clip, (row.seconds, row.truth))
            texts = outputs.setdefault(row.clip, {})
            texts.setdefault(reference, row.reference_text)
            texts.setdefault(candidate, row.candidate_text)
    return tuple(
        Transcript(
            clip=clip,
            seconds=seconds,
            truth=truth,
            outputs=tuple(Output(system=system, text=text) for system, text in outputs[clip].items()),
        )
        for clip, (seconds, truth) in clips.items()
    )


def word_errors_by_system(transcripts: Sequence[Transcript]) -> dict[str, ErrorCount]:
    """Word errors of each system against the truth, over the clips that have one."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for transcript in transcripts:
        for output in transcript.outputs:
            known = pairs.setdefault(output.system, [])
            if transcript.truth is not None:
                known.append((transcript.truth, output.text))
    return {system: word_errors(known) for system, known in pairs.items()}
