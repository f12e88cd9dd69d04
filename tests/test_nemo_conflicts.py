"""What ends an import of NeMo, in the words in which people report it, and what is made of it."""

from __future__ import annotations

import pytest

from nemotrt.nemo_conflicts import conflict_in

# The last lines of a traceback -> what has to be in the explanation, and what is to be installed.
REPORTED = {
    "hub too new for transformers": (
        "ImportError: huggingface-hub>=0.34.0,<1.0 is required for a normal functioning of this module, but found "
        "huggingface-hub==1.2.3.\nTry: `pip install transformers -U` or `pip install -e '.[dev]'`",
        ("huggingface-hub",),
        "'huggingface-hub>=0.34.0,<1.0'",
    ),
    "tokenizers too new for transformers": (
        "ImportError: tokenizers>=0.11.1,!=0.11.3,<0.14 is required for a normal functioning of this module, but found "
        "tokenizers==0.19.1.",
        ("tokenizers",),
        "'tokenizers>=0.11.1,!=0.11.3,<0.14'",
    ),
    "hub without ModelFilter": (
        "ImportError: cannot import name 'ModelFilter' from 'huggingface_hub' (/x/huggingface_hub/__init__.py)",
        ("ModelFilter",),
        "'huggingface_hub<0.24'",
    ),
    "hub without cached_download": (
        "ImportError: cannot import name 'cached_download' from 'huggingface_hub' (/x/huggingface_hub/__init__.py)",
        ("cached_download",),
        "'huggingface_hub<0.26'",
    ),
    "hub too old": (
        "cannot import name 'split_torch_state_dict_into_shards' from 'huggingface_hub' (/x/__init__.py)",
        ("too old", "split_torch_state_dict_into_shards"),
        "--upgrade huggingface_hub transformers",
    ),
    "torchmetrics too new for lightning 1": (
        "ImportError: cannot import name 'get_num_classes' from 'torchmetrics.utilities.data' (/x/data.py)",
        ("lightning", "torchmetrics"),
        "'torchmetrics<0.7'",
    ),
    "lightning too old": (
        "ImportError: cannot import name '_TrainingEpochLoop' from 'pytorch_lightning.loops' (/x/loops/__init__.py)",
        ("lightning",),
        "--upgrade 'nemo_toolkit[asr]'",
    ),
    "lightning missing": (
        "ModuleNotFoundError: No module named 'lightning.pytorch'",
        ("lightning",),
        "--upgrade 'nemo_toolkit[asr]'",
    ),
    "numpy 2 without sctypes": (
        "AttributeError: `np.sctypes` was removed in the NumPy 2.0 release. Access dtypes explicitly instead.",
        ("numpy 2",),
        "'numpy<2'",
    ),
    "numpy 2 under an extension": (
        "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.1.0 as it may crash.\n"
        "ImportError: numpy.core.multiarray failed to import",
        ("numpy 2",),
        "'numpy<2'",
    ),
    "numpy 1 under an extension": (
        "ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88 "
        "from PyObject",
        ("compiled for numpy 2",),
        "'numpy>=2'",
    ),
    "numpy too new for numba": (
        "ImportError: Numba needs NumPy 2.2 or less. Got NumPy 2.3.",
        ("numba",),
        "'numpy<=2.2'",
    ),
    "protobuf too new": (
        "TypeError: Descriptors cannot be created directly.\nIf this call came from a _pb2.py file, your generated "
        "code is out of date and must be regenerated with protoc >= 3.19.0.",
        ("older protobuf",),
        "'protobuf<3.21'",
    ),
    "protobuf too old": (
        "google.protobuf.runtime_version.VersionError: Detected incompatible Protobuf Gencode/Runtime versions when "
        "loading x.proto: gencode 6.31.1 runtime 5.29.5. Runtime version cannot be older than the linked gencode.",
        ("newer protobuf",),
        "'protobuf>=6.31.1'",
    ),
    "torchvision of another torch": (
        "RuntimeError: Failed to import transformers.modeling_utils because of the following error (look up to see its "
        "traceback):\noperator torchvision::nms does not exist",
        ("torchvision",),
        "--upgrade --force-reinstall torch torchaudio torchvision",
    ),
    "torchaudio of another torch": (
        "OSError: /x/torchaudio/lib/libtorchaudio.so: undefined symbol: _ZNK3c105Error4whatEv",
        ("torchaudio",),
        "--upgrade --force-reinstall torch torchaudio torchvision",
    ),
    "setuptools too new": (
        "ModuleNotFoundError: No module named 'pkg_resources'",
        ("setuptools",),
        "'setuptools<81'",
    ),
    "texterrors missing": (
        "ModuleNotFoundError: No module named 'texterrors'",
        ("without texterrors",),
        "--upgrade 'nemo_toolkit[asr]'",
    ),
    "lhotse missing": (
        "ModuleNotFoundError: No module named 'lhotse.dataset'",
        ("without lhotse",),
        "--upgrade 'nemo_toolkit[asr]'",
    ),
    "no NeMo": ("ModuleNotFoundError: No module named 'nemo'", ("not installed",), "'nemo_toolkit[asr]'"),
    "no NeMo, another package of that name": (
        "ModuleNotFoundError: No module named 'nemo.collections'",
        ("not installed",),
        "'nemo_toolkit[asr]'",
    ),
}


@pytest.mark.parametrize(("words", "said", "install"), REPORTED.values(), ids=REPORTED)
def test_a_reported_failure_is_explained(words: str, said: tuple[str, ...], install: str) -> None:
    conflict = conflict_in(
        f'Traceback (most recent call last):\n  File "/x/common.py", line 31, in <module>\n{words}\n'
    )
    assert conflict is not None
    for text in said:
        assert text in conflict.what
    assert conflict.install == install
    assert conflict.packages
    assert not any("{" in text for text in (conflict.what, conflict.install, *conflict.packages))


def test_the_last_exception_decides() -> None:
    handled = "ModuleNotFoundError: No module named 'apex'\n"
    between = "\nDuring handling of the above exception, another exception occurred:\n\n"
    last = "ImportError: cannot import name 'ModelFilter' from 'huggingface_hub' (/x)\n"
    conflict = conflict_in(handled + between + last)
    assert conflict is not None
    assert "ModelFilter" in conflict.what


@pytest.mark.parametrize(
    "words", ["", "ImportError: libcuda.so.1: cannot open shared object file", "ValueError: seven"]
)
def test_what_nobody_knows_is_not_explained(words: str) -> None:
    assert conflict_in(words) is None
