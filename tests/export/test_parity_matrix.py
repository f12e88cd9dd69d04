"""Every kind of model against NeMo: a sample with each run, the whole matrix with: make parity"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import archives
import pytest
from parity_matrix import BIASES, FAMILIES, HEADS, NORMS, REFUSED, Cell, Difference, difference, every_cell
from small_models import small_transducer

from nemotrt.errors import UnsupportedModelError
from nemotrt.export import export_checkpoint

ENCODER_TOLERANCE = 1e-5
HEAD_TOLERANCE = 1e-4
SAMPLE = 30

Found = dict[Cell, Difference]


def measured(cells: Iterable[Cell], folder: Path) -> Found:
    return {cell: difference(cell, folder / f"{index}.nemo", seed=index) for index, cell in enumerate(cells)}


def beyond(found: Found) -> Found:
    """The cells that are out of tolerance; a NaN is."""
    return {
        cell: one
        for cell, one in found.items()
        if not ((one.encoder is None or one.encoder <= ENCODER_TOLERANCE) and one.heads <= HEAD_TOLERANCE)
    }


def worst(found: Found) -> tuple[float, float]:
    return max(one.encoder or 0.0 for one in found.values()), max(one.heads for one in found.values())


def test_a_sample_of_the_matrix_agrees(tmp_path: Path, figure: Callable[[str], None]) -> None:
    cells = random.Random(1).sample(every_cell(), SAMPLE)
    for field in fields(Cell):
        choices = {getattr(cell, field.name) for cell in every_cell()}
        assert {getattr(cell, field.name) for cell in cells} == choices, f"a {field.name} is never sampled"
    found = measured(cells, tmp_path)
    encoder, heads = worst(found)
    figure(f"parity matrix, {len(cells)} of {len(every_cell())} cells: encoder {encoder:.1e}, heads {heads:.1e}")
    assert beyond(found) == {}


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_is_not_built_is_refused_by_its_key(tmp_path: Path, key: str, value: object) -> None:
    members = archives.read_members(small_transducer(tmp_path / "a.nemo").checkpoint)
    config = archives.changed(archives.config_of(members), f"encoder.{key}", value)
    archives.write_archive(tmp_path / "b.nemo", archives.with_config(members, config))
    with pytest.raises(UnsupportedModelError) as refusal:
        export_checkpoint(tmp_path / "b.nemo", tmp_path / "b")
    assert f"encoder.{key}" in refusal.value.what
    assert not (tmp_path / "b").exists()


@pytest.mark.matrix
@pytest.mark.timeout(3600)
def test_the_whole_matrix_agrees(tmp_path: Path, figure: Callable[[str], None]) -> None:
    found = measured(every_cell(), tmp_path)
    for line in table(found):
        figure(line)
    assert beyond(found) == {}


def table(found: Found) -> Iterable[str]:
    """The largest difference over all contexts, by family and head and by norm and bias."""
    columns = [(norm, bias) for norm in NORMS for bias in BIASES]
    yield f"{'largest difference from NeMo, all contexts':<58}" + "".join(f"{norm:>10}" for norm, _ in columns)
    yield f"{'family, head (CTC: log probabilities)':<58}" + "".join(f"{bias:>10}" for _, bias in columns)
    for family in FAMILIES:
        for head in HEADS:
            row = f"{family + ', ' + head:<58}"
            for norm, bias in columns:
                wanted = (family, head, norm, bias)
                cells = [d for c, d in found.items() if (c.family, c.head, c.norm, c.bias) == wanted]
                row += f"{max(one.heads if one.encoder is None else one.encoder for one in cells):>10.1e}"
            yield row
    encoder, heads = worst(found)
    yield f"{len(found)} cells: encoder {encoder:.1e} (bound {ENCODER_TOLERANCE:g}), heads {heads:.1e} "
    yield f"(bound {HEAD_TOLERANCE:g}); refused by name: " + ", ".join(f"{key}={value}" for key, value in REFUSED)
