"""Tensors read without torch. Oracle: torch. And weights that are hostile, damaged, or of another model."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotrt.bundle import Bundle
from nemotrt.errors import ArchiveError, WeightsError
from nemotrt.export import export_checkpoint
from nemotrt.export.archive import WEIGHTS_MEMBER
from nemotrt.export.weights import FloatArray, open_weights

torch = pytest.importorskip("torch")
ORIGIN = Path("m.nemo")


def read(data: bytes, name: str) -> FloatArray:
    with open_weights(io.BytesIO(data), origin=ORIGIN) as weights:
        return weights.read(name)


def refused(data: bytes, name: str = "w") -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        read(data, name)
    return caught.value


class TestReading:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int32", "bool"])
    def test_every_stored_type_is_read_as_torch_reads_it(self, dtype: str) -> None:
        tensor = (torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 10).to(getattr(torch, dtype))
        found = read(archives.state_bytes({"w": tensor}), "w")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, tensor.float().numpy())

    @pytest.mark.parametrize(
        "view",
        [
            lambda base: base.t(),
            lambda base: base[2:, 1:3],
            lambda base: base[::2, ::3],
            lambda base: base[:, 4],
            lambda base: base.permute(1, 0)[3:],
            lambda base: base.unfold(0, 2, 2),
            lambda base: base[3, 4],
            lambda base: torch.nn.Parameter(base[1:]),
        ],
    )
    def test_views_of_a_storage_are_read_as_torch_reads_them(self, view: Any) -> None:
        tensor = view(torch.arange(48.0).reshape(6, 8))
        found = read(archives.state_bytes({"w": tensor}), "w")
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, tensor.detach().numpy())

    def test_two_names_may_share_a_storage(self) -> None:
        base = torch.arange(10.0)
        data = archives.state_bytes({"a": base[:5], "b": base[3:]})
        np.testing.assert_array_equal(read(data, "a"), [0, 1, 2, 3, 4])
        np.testing.assert_array_equal(read(data, "b"), [3, 4, 5, 6, 7, 8, 9])

    @pytest.mark.parametrize("name", ["_orig_mod.w", "module.w", "module._orig_mod.w", "_orig_mod.module.w"])
    def test_prefixes_of_wrappers_are_removed(self, name: str) -> None:
        np.testing.assert_array_equal(read(archives.state_bytes({name: torch.ones(2)}), "w"), [1, 1])

    def test_two_weights_may_not_have_one_name_without_their_prefixes(self) -> None:
        data = archives.state_bytes({"module.w": torch.ones(2), "w": torch.zeros(2)})
        assert "one name" in refused(data).what

    def test_a_missing_weight_is_named(self) -> None:
        with pytest.raises(WeightsError, match="no v"):
            read(archives.state_bytes({"w": torch.ones(2)}), "v")


class TestDamage:
    DATA = archives.state_bytes({"w": torch.arange(1000.0)})

    def test_the_undamaged_file_is_read(self) -> None:
        np.testing.assert_array_equal(read(self.DATA, "w"), np.arange(1000))

    @pytest.mark.parametrize("data", [b"", b"PK", b"x" * 100, DATA[:-30], DATA[: len(DATA) // 2]])
    def test_what_is_not_a_zip(self, data: bytes) -> None:
        assert "torch zip file" in refused(data).what

    def test_a_flipped_bit_in_a_weight(self) -> None:
        place = self.DATA.index(np.float32(500).tobytes() + np.float32(501).tobytes())
        damaged = bytearray(self.DATA)
        damaged[place] ^= 1
        error = refused(bytes(damaged))
        assert "damaged" in error.what
        assert "CRC" in str(error)

    def test_compressed_entries(self) -> None:
        with zipfile.ZipFile(io.BytesIO(self.DATA)) as entries:
            names = {info.filename.split("/", 1)[1]: entries.read(info) for info in entries.infolist()}
        pickled = names.pop("data.pkl")
        storages = {"0": names["data/0"]}
        np.testing.assert_array_equal(read(archives.torch_zip(pickled, storages), "w"), np.arange(1000))
        compressed = archives.torch_zip(pickled, storages, compression=zipfile.ZIP_DEFLATED)
        assert "compressed" in refused(compressed).what

    @pytest.mark.parametrize("stored", [0, 2, 3996, 3999])
    def test_a_tensor_beyond_its_storage(self, stored: int) -> None:
        with zipfile.ZipFile(io.BytesIO(self.DATA)) as entries:
            pickled = entries.read(next(n for n in entries.namelist() if n.endswith("data.pkl")))
        assert "beyond its storage" in refused(archives.torch_zip(pickled, {"0": bytes(stored)})).what
        assert "damaged" in refused(archives.torch_zip(pickled)).what  # no storage at all

    @settings(deadline=None, max_examples=150)
    @given(st.data())
    def test_no_flipped_bytes_raise_anything_else(self, data: st.DataObject) -> None:
        """Headers, pickle and index of a small file, which CRCs do not all cover."""
        damaged = bytearray(archives.state_bytes({"w": torch.arange(4.0), "v": torch.ones(2, 2)}))
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        with (
            suppress(ArchiveError, WeightsError),
            open_weights(io.BytesIO(bytes(damaged)), origin=ORIGIN) as weights,
        ):
            weights.read("w")
            weights.read("v")


@dataclass(frozen=True)
class Storage:
    """Pickled as torch pickles a float32 storage of ``elements``."""

    elements: int
    key: str = "0"


class TorchPickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, Storage):
            return ("storage", torch.FloatStorage, obj.key, "cpu", obj.elements)
        return None


class Reduced:
    """Pickles as a call, followed by a state if there is one."""

    def __init__(self, function: Any, arguments: tuple[object, ...], state: object = None) -> None:
        self._parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self._parts


def tensor(
    *,
    storage: object = Storage(4),
    offset: object = 0,
    shape: object = (4,),
    strides: object = (1,),
    state: object = None,
) -> Reduced:
    arguments = (storage, offset, shape, strides, False, OrderedDict())
    return Reduced(torch._utils._rebuild_tensor_v2, arguments, state)


def hostile(state: object, storages: Mapping[str, bytes] | None = None, *, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    TorchPickler(stream, protocol=protocol).dump(state)
    return archives.torch_zip(stream.getvalue(), storages or {"0": np.arange(4, dtype=np.float32).tobytes()})


class TestHostilePickles:
    def test_the_friendly_one_is_read(self) -> None:
        np.testing.assert_array_equal(read(hostile(OrderedDict(w=tensor())), "w"), [0, 1, 2, 3])

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_code_is_refused_and_not_run(self, tmp_path: Path, protocol: int) -> None:
        state = {"w": Reduced(os.system, (f"touch {tmp_path / 'ran'}",))}
        if protocol:  # protocol 0 has no way to write the storage of another weight
            state["v"] = tensor()
        error = refused(hostile(state, protocol=protocol))
        assert "asks for more than tensors" in error.what
        assert error.found == f"{os.system.__module__}.system"
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        "function", [eval, getattr, Path, np.zeros, torch.nn.Linear, torch.load, io.BytesIO, OrderedDict.fromkeys]
    )
    def test_every_other_name_is_refused(self, function: Any) -> None:
        assert "asks for more than tensors" in refused(hostile({"w": Reduced(function, ())})).what

    @pytest.mark.parametrize(
        "state",
        [
            [tensor()],
            {"w": 1},
            {"w": {"v": tensor()}},
            {1: tensor()},
            {"\x1b[2J": tensor()},
            {"w": tensor(storage=1)},
            {"w": tensor(storage=("0", "float32"))},
            {"w": tensor(offset=-1)},
            {"w": tensor(offset=1.0)},
            {"w": tensor(offset=True)},
            {"w": tensor(shape=(-4,))},
            {"w": tensor(strides=(-1,))},
            {"w": tensor(strides=(1, 1))},
            {"w": tensor(shape=[4])},
            {"w": tensor(shape=("4",))},
            {"w": tensor(shape=(1 << 41,))},
            {"w": tensor(offset=1)},
            {"w": tensor(strides=(2,))},
            {"w": tensor(shape=(4, 1 << 30), strides=(1, 0))},
            {"w": tensor(storage=Storage(4, "../0"))},
            {"w": Reduced(torch._utils._rebuild_tensor_v2, ())},
            {"w": Reduced(torch.FloatStorage, ())},
        ],
        ids=str,
    )
    def test_tensors_that_are_none(self, state: object) -> None:
        refused(hostile(state))

    def test_a_stride_that_is_never_walked_may_be_anything(self) -> None:
        data = hostile({"w": tensor(shape=(1, 4), strides=(1 << 62, 1))})
        np.testing.assert_array_equal(read(data, "w"), [[0, 1, 2, 3]])

    @pytest.mark.parametrize(
        "state", [{"strides": (-(1 << 40),)}, {"shape": (1 << 40,)}, (None, {"offset": -(1 << 40)}), {"x": 1}], ids=str
    )
    def test_a_tensor_cannot_be_rewritten_after_it_was_checked(self, state: object) -> None:
        """BUILD sets attributes without asking anybody: numbers from outside of the storage would be read."""
        assert "damaged" in refused(hostile({"w": tensor(state=state)})).what

    def test_a_pickle_cannot_change_what_the_next_one_means(self) -> None:
        """BUILD on a storage type, which outlives the file."""
        rewrite = b"\x80\x02ctorch\nFloatStorage\n}U\x05dtypeU\x01xsb."
        refused(archives.torch_zip(rewrite))
        np.testing.assert_array_equal(read(hostile({"w": tensor()}), "w"), [0, 1, 2, 3])

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=200))
    def test_no_bytes_raise_anything_else(self, pickled: bytes) -> None:
        with suppress(ArchiveError, WeightsError):
            read(archives.torch_zip(b"\x80\x02" + pickled), "w")

    @pytest.mark.parametrize("pickles", [0, 2])
    def test_there_is_exactly_one_pickle(self, pickles: int) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as entries:
            entries.writestr("model/version", "3")
            for index in range(pickles):
                entries.writestr(f"model{index}/data.pkl", pickle.dumps({}))
        assert "data.pkl" in refused(stream.getvalue()).what


@pytest.fixture(scope="module")
def state(tdt_members: archives.Members) -> dict[str, Any]:
    return archives.state_of(tdt_members)


class TestWeightsAndConfigTogether:
    def refused(
        self, tmp_path: Path, members: archives.Members, state: Mapping[str, Any], refusal: archives.Refusal
    ) -> WeightsError:
        path = archives.write_archive(tmp_path / "m.nemo", archives.with_state(members, state))
        error = refusal(path, WeightsError)
        assert isinstance(error, WeightsError)
        return error

    @pytest.mark.parametrize(
        "name",
        [
            "encoder.layers.3.norm_out.bias",
            "encoder.layers.0.conv.batch_norm.running_var",
            "encoder.layers.2.self_attn.pos_bias_v",
            "encoder.pre_encode.conv.5.bias",
            "decoder.prediction.dec_rnn.lstm.bias_hh_l1",
            "decoder.prediction.embed.weight",
            "joint.joint_net.2.weight",
            "preprocessor.featurizer.fb",
        ],
    )
    def test_a_missing_or_misshapen_weight_is_named(
        self, tmp_path: Path, tdt_members: archives.Members, state: dict[str, Any], refusal: archives.Refusal, name: str
    ) -> None:
        without = {key: value for key, value in state.items() if key != name}
        assert name in str(self.refused(tmp_path, tdt_members, without, refusal))
        longer = {**state, name: torch.cat([state[name], state[name]])}
        error = self.refused(tmp_path, tdt_members, longer, refusal)
        assert name in str(error)
        assert "expected" in str(error)

    def test_a_weight_that_nothing_reads_is_refused(
        self, tmp_path: Path, tdt_members: archives.Members, state: dict[str, Any], refusal: archives.Refusal
    ) -> None:
        extra = {**state, "encoder.layers.0.adapter.weight": torch.ones(2)}
        assert "encoder.layers.0.adapter.weight" in str(self.refused(tmp_path, tdt_members, extra, refusal))

    def test_a_bias_that_the_config_denies_is_refused(
        self, tmp_path: Path, hybrid_members: archives.Members, refusal: archives.Refusal
    ) -> None:
        config = archives.changed(archives.config_of(hybrid_members), "encoder.use_bias", False)
        path = archives.write_archive(tmp_path / "m.nemo", archives.with_config(hybrid_members, config))
        assert "bias" in str(refusal(path, WeightsError))

    def test_config_and_weights_of_two_models_are_refused(
        self, tmp_path: Path, tdt_members: archives.Members, hybrid_members: archives.Members, refusal: archives.Refusal
    ) -> None:
        mixed = {**tdt_members, WEIGHTS_MEMBER: hybrid_members[WEIGHTS_MEMBER]}
        refusal(archives.write_archive(tmp_path / "m.nemo", mixed), WeightsError)

    def test_compiled_and_wrapped_weights_give_the_identical_bundle(
        self, tmp_path: Path, tdt_members: archives.Members, state: dict[str, Any], tdt_bundle: Bundle
    ) -> None:
        wrapped = {f"module.{name.replace('encoder.', 'encoder._orig_mod.')}": value for name, value in state.items()}
        path = archives.write_archive(tmp_path / "m.nemo", archives.with_state(tdt_members, wrapped))
        assert export_checkpoint(path, tmp_path / "bundle").meta.files == tdt_bundle.meta.files

    @pytest.mark.parametrize("name", ["encoder.layers.0.feed_forward1.linear1.weight", "joint.enc.bias"])
    def test_a_damaged_weight_ends_the_export_whether_it_is_large_or_small(
        self, tmp_path: Path, tdt_members: archives.Members, state: dict[str, Any], refusal: archives.Refusal, name: str
    ) -> None:
        """Large ones go to the data file, small ones into the graph: two ways through the writer."""
        data = bytearray(tdt_members[WEIGHTS_MEMBER])
        place = bytes(data).index(state[name].numpy().tobytes())
        data[place + 1] ^= 0x40
        path = archives.write_archive(tmp_path / "m.nemo", {**tdt_members, WEIGHTS_MEMBER: bytes(data)})
        assert name in str(refusal(path, ArchiveError))
