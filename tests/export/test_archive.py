"""Hostile and broken archives. Each is refused by name, and nothing is left behind."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import IO

import archives
import psutil
import pytest

from nemotrt.bundle import Bundle
from nemotrt.errors import ArchiveError, ConfigError, MachineError
from nemotrt.export import archive, export_checkpoint
from nemotrt.export.archive import CONFIG_MEMBER, WEIGHTS_MEMBER, open_nemo

OUTSIDE = b"this must not be written or read"


class TestNotAnArchive:
    def test_a_file_that_does_not_exist(self, tmp_path: Path, refusal: archives.Refusal) -> None:
        assert "no such checkpoint" in str(refusal(tmp_path / "none.nemo", ArchiveError))

    def test_a_folder(self, tmp_path: Path, refusal: archives.Refusal) -> None:
        refusal(tmp_path, ArchiveError)

    @pytest.mark.parametrize("content", [b"", b"\0" * 10240, b"RIFF" + bytes(5000), b"\x1f\x8b", b"\x1f\x8b\x08\0junk"])
    def test_a_file_of_something_else(self, tmp_path: Path, refusal: archives.Refusal, content: bytes) -> None:
        path = tmp_path / "m.nemo"
        path.write_bytes(content)
        refusal(path, ArchiveError)

    @pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.9, 0.999])
    def test_a_truncated_archive(
        self, tmp_path: Path, tdt_checkpoint: Path, refusal: archives.Refusal, share: float
    ) -> None:
        data = tdt_checkpoint.read_bytes()
        end_of_content = data.rstrip(b"\0")
        path = tmp_path / "m.nemo"
        path.write_bytes(data[: int(share * len(end_of_content))])
        refusal(path, ArchiveError)

    def test_a_truncated_gzip(self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal) -> None:
        path = archives.write_archive(tmp_path / "m.gz", tdt_members)
        path.write_bytes(path.read_bytes()[:-1000])
        refusal(path, ArchiveError)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
    def test_a_file_that_may_not_be_read(self, tmp_path: Path, refusal: archives.Refusal) -> None:
        path = tmp_path / "m.nemo"
        path.touch(mode=0o000)
        refusal(path, ArchiveError)


class TestMembers:
    @pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "//evil", ".."])
    def test_a_name_that_leaves_the_archive(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal, name: str
    ) -> None:
        info, _ = archives.entry(name, OUTSIDE)
        error = refusal(archives.write_archive(tmp_path / "m.nemo", tdt_members, (info, OUTSIDE)), ArchiveError)
        assert "leaves the archive" in error.what
        assert name in str(error)

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    )
    def test_links_and_devices(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal, kind: bytes
    ) -> None:
        info, _ = archives.entry("vocab.txt", kind=kind, target="/etc/passwd")
        error = refusal(archives.write_archive(tmp_path / "m.nemo", tdt_members, (info, b"")), ArchiveError)
        assert "link or device" in error.what

    @pytest.mark.parametrize("member", [CONFIG_MEMBER, WEIGHTS_MEMBER])
    def test_a_link_in_place_of_a_member(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal, member: str
    ) -> None:
        (tmp_path / "target").write_bytes(tdt_members[member])
        others = {name: data for name, data in tdt_members.items() if name != member}
        info, _ = archives.entry(member, kind=tarfile.SYMTYPE, target=str(tmp_path / "target"))
        refusal(archives.write_archive(tmp_path / "m.nemo", others, (info, b"")), ArchiveError)

    def test_two_members_of_one_name(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal
    ) -> None:
        info, _ = archives.entry(f"./{CONFIG_MEMBER}", b"x: 1")
        error = refusal(archives.write_archive(tmp_path / "m.nemo", tdt_members, (info, b"x: 1")), ArchiveError)
        assert "one name" in error.what

    @pytest.mark.parametrize("member", [CONFIG_MEMBER, WEIGHTS_MEMBER, "tokenizer.model"])
    def test_a_missing_member(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal, member: str
    ) -> None:
        others = {name: data for name, data in tdt_members.items() if not name.endswith(member)}
        error = refusal(archives.write_archive(tmp_path / "m.nemo", others), ArchiveError)
        assert member in error.what

    def test_more_members_than_any_checkpoint_has(self, tmp_path: Path, refusal: archives.Refusal) -> None:
        refusal(archives.write_archive(tmp_path / "m.nemo", {f"f{i}": b"" for i in range(1001)}), ArchiveError)

    def test_a_member_that_claims_to_be_longer_than_the_file(self, tmp_path: Path, refusal: archives.Refusal) -> None:
        info, _ = archives.entry(CONFIG_MEMBER)
        info.size = 1 << 40
        path = tmp_path / "m.nemo"
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
        assert "truncated" in refusal(path, ArchiveError).what

    def test_a_member_of_negative_size(self, tmp_path: Path, refusal: archives.Refusal) -> None:
        info, _ = archives.entry(CONFIG_MEMBER)
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[124:136] = b"\xff" * 10 + struct.pack(">h", -512)  # base-256, as GNU tar writes large sizes
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path = tmp_path / "m.nemo"
        path.write_bytes(bytes(header) + bytes(2048))
        refusal(path, ArchiveError)

    def test_a_chain_of_long_names(self, tmp_path: Path, refusal: archives.Refusal) -> None:
        """Each is read inside the one before: Python's reader runs out of stack."""
        info, data = archives.entry("././@LongLink", b"n" * 200, kind=tarfile.GNUTYPE_LONGNAME)
        block = info.tobuf(tarfile.GNU_FORMAT) + data.read().ljust(512, b"\0")
        path = tmp_path / "m.nemo"
        path.write_bytes(block * 5000 + bytes(1024))
        refusal(path, ArchiveError)

    def test_a_tokenizer_that_is_too_large_to_be_one(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nemotrt.export.archive._MAX_TEXT_BYTES", 100_000)
        error = refusal(archives.write_archive(tmp_path / "m.nemo", tdt_members), ArchiveError)
        assert "tokenizer.model" in error.what

    def test_a_name_cannot_write_to_the_terminal(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal
    ) -> None:
        info, _ = archives.entry("../\x1b[2J\udcff")
        error = refusal(archives.write_archive(tmp_path / "m.nemo", tdt_members, (info, b"")), ArchiveError)
        assert str(error).replace("\n", "").isprintable()


class TestGzip:
    def test_a_gzipped_archive_gives_the_identical_bundle(
        self, tmp_path: Path, tdt_members: archives.Members, tdt_bundle: Bundle
    ) -> None:
        bundle = export_checkpoint(archives.write_archive(tmp_path / "m.gz", tdt_members), tmp_path / "bundle")
        assert bundle.meta.files == tdt_bundle.meta.files

    def test_a_bomb_is_refused_before_it_fills_the_disk(
        self, tmp_path: Path, refusal: archives.Refusal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = recorded_spills(monkeypatch)
        path = tmp_path / "m.nemo"
        path.write_bytes(gzip.compress(bytes(200 << 20)))
        assert "inflates" in refusal(path, ArchiveError).what
        assert 0 < sum(written) <= 32 << 20

    def test_no_room_to_inflate_is_a_matter_of_the_machine(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Full(io.BytesIO):
            def write(self, _data: object) -> int:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
        error = refusal(archives.write_archive(tmp_path / "m.gz", tdt_members), MachineError)
        assert "TMPDIR" in str(error)


def recorded_spills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what goes to the temporary file, as it goes."""
    written: list[int] = []
    spill = archive._spill

    def recording(block: bytes, plain: IO[bytes]) -> None:
        written.append(len(block))
        spill(block, plain)

    monkeypatch.setattr(archive, "_spill", recording)
    return written


class TestYaml:
    @pytest.mark.parametrize(
        "text",
        [
            b"a: [1",
            b"a: b: c",
            b"\xff\xfe\xfa",
            b"a: \x00",
            b"{a: 1}: 2: 3",
            b"a: !!python/object/apply:os.system [true]",
            b"a: &a [*a]",
            b"a: &a [x]\nb: *a",
            b"- 1\n- 2",
            b"just a text",
            b"",
            b"a: " + b"9" * 5000,
            b"a: " + b"x" * (1 << 17),
            b"a: " + b"[" * 100_000,
            b"a: " + b"[" * 100_000 + b"]" * 100_000,
            b"".join(b" " * depth + b"a:\n" for depth in range(200)),
        ],
        ids=lambda text: repr(text[:24]),
    )  # fmt: skip
    def test_a_config_that_is_not_one(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal, text: bytes
    ) -> None:
        path = archives.write_archive(tmp_path / "m.nemo", {**tdt_members, CONFIG_MEMBER: text})
        assert CONFIG_MEMBER in str(refusal(path, ConfigError))

    def test_aliases_that_multiply_are_refused_without_being_followed(
        self, tmp_path: Path, tdt_members: archives.Members, refusal: archives.Refusal
    ) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        text = "\n".join([*lines, "encoder: {d_model: *a11}"]).encode()
        refusal(archives.write_archive(tmp_path / "m.nemo", {**tdt_members, CONFIG_MEMBER: text}), ConfigError)


def test_the_archive_is_closed_and_no_temporary_file_stays(
    tmp_path: Path, tdt_members: archives.Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    open_before = psutil.Process().num_fds()
    with open_nemo(archives.write_archive(tmp_path / "m.gz", tdt_members)) as opened:
        assert "encoder" in opened.config
        assert opened.artifact(opened.config["tokenizer"]["model_path"])
    assert list(temporary.iterdir()) == []
    assert psutil.Process().num_fds() == open_before
