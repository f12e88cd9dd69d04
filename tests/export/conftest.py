"""What the export tests share: archives to alter, a refusal that must leave nothing, NeMo as the oracle."""

from __future__ import annotations

from pathlib import Path

import archives
import pytest
from nemo_oracle import NemoModel

from nemotrt.bundle import Bundle
from nemotrt.engines.audio import Clip, Waveform, read_clips, read_waveform
from nemotrt.errors import NemotrtError
from nemotrt.export import ExportOptions, export_checkpoint


@pytest.fixture(scope="session")
def tdt_members(tdt_checkpoint: Path) -> archives.Members:
    return archives.read_members(tdt_checkpoint)


@pytest.fixture(scope="session")
def hybrid_members(hybrid_checkpoint: Path) -> archives.Members:
    return archives.read_members(hybrid_checkpoint)


@pytest.fixture
def refusal(tmp_path: Path) -> archives.Refusal:
    """Export a checkpoint that must be refused with exactly one class of error, and leave nothing behind."""

    def refuse(checkpoint: Path, error: type[NemotrtError]) -> NemotrtError:
        folder = tmp_path / "refused"
        folder.mkdir(exist_ok=True)
        with pytest.raises(NemotrtError) as caught:
            export_checkpoint(checkpoint, folder / "bundle")
        assert type(caught.value) is error, caught.value
        assert list(folder.iterdir()) == []
        return caught.value

    return refuse


@pytest.fixture(scope="session")
def tdt_nemo(tdt_checkpoint: Path) -> NemoModel:
    return NemoModel.restored(tdt_checkpoint)


@pytest.fixture(scope="session")
def hybrid_nemo(hybrid_checkpoint: Path) -> NemoModel:
    return NemoModel.restored(hybrid_checkpoint)


@pytest.fixture(scope="session")
def complete_tdt_bundle(tdt_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = ExportOptions(components=("all",))
    return export_checkpoint(tdt_checkpoint, tmp_path_factory.mktemp("bundles") / "tdt", options=options)


@pytest.fixture(scope="session")
def complete_hybrid_bundle(hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = ExportOptions(components=("all",))
    return export_checkpoint(hybrid_checkpoint, tmp_path_factory.mktemp("bundles") / "hybrid", options=options)


@pytest.fixture(scope="session")
def clips(demo_manifest: Path) -> tuple[Clip, ...]:
    return read_clips(demo_manifest)


@pytest.fixture(scope="session")
def waveforms(clips: tuple[Clip, ...]) -> tuple[Waveform, ...]:
    return tuple(read_waveform(clip.path, sample_rate=16000) for clip in clips)
