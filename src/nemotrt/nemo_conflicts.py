"""Why an import of NeMo failed: a traceback -> which packages do not fit together, and what to install instead.

The last exception decides; what was printed before it is asked only if the last exception says nothing known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NEMO = "nemo_toolkit"


@dataclass(frozen=True)
class Conflict:
    """``packages`` are the distributions whose versions explain it; ``install`` is what pip gets, ``""`` if unknown.

    In a rule's texts ``{name}`` stands for a named group of its pattern.
    """

    what: str
    packages: tuple[str, ...]
    install: str


_REINSTALL = "--upgrade 'nemo_toolkit[asr]'"
_TORCH = ("torch", "torchaudio", "torchvision")
_LIGHTNING = (NEMO, "lightning", "pytorch-lightning", "torchmetrics")

# The first pattern that is found decides: special ones stand before general ones.
_RULES: tuple[tuple[str, Conflict], ...] = (
    (
        r"(?P<requirement>(?P<name>[\w.-]+?)[<>=!~][^\s']*) is required for a normal functioning of this module",
        Conflict("transformers does not work with this {name}", ("transformers", "{name}"), "'{requirement}'"),
    ),
    *(
        (
            rf"cannot import name '{name}' from 'huggingface_hub",
            Conflict(
                f"a package asks huggingface_hub for {name}, which newer versions do not have",
                (NEMO, "transformers", "huggingface_hub"),
                f"'huggingface_hub<{removed}'",
            ),
        )
        for name, removed in (("ModelFilter", "0.24"), ("cached_download", "0.26"), ("HfFolder", "1.0"))
    ),
    (
        r"cannot import name '(?P<name>\w+)' from 'huggingface_hub",
        Conflict(
            "huggingface_hub is too old for a package that asks it for {name}",
            (NEMO, "transformers", "huggingface_hub"),
            "--upgrade huggingface_hub transformers",
        ),
    ),
    *(
        (
            rf"cannot import name '{name}' from 'torchmetrics",
            Conflict("lightning and torchmetrics do not fit together", _LIGHTNING, f"'torchmetrics<{removed}'"),
        )
        for name, removed in (("get_num_classes", "0.7"), ("_compare_version", "1.0"))
    ),
    (
        r"(?:cannot import name '\w+' from|No module named) '(?:pytorch_)?lightning\b|from 'torchmetrics",
        Conflict("NeMo and lightning do not fit together, or lightning is missing", _LIGHTNING, _REINSTALL),
    ),
    (
        r"Numba needs NumPy (?P<limit>[\d.]*\d) or less",
        Conflict("numba does not work with this numpy", ("numba", "numpy"), "'numpy<={limit}'"),
    ),
    (
        r"numpy.dtype size changed.*Expected 96 from C header",
        Conflict("a package is compiled for numpy 2", (NEMO, "numpy"), "'numpy>=2'"),
    ),
    (
        r"removed in the NumPy 2\.0 release|compiled using NumPy 1\.x|numpy\.core\.multiarray failed to import",
        Conflict("a package does not work with numpy 2", (NEMO, "numpy"), "'numpy<2'"),
    ),
    (
        r"Descriptors cannot (?:not )?be created directly",
        Conflict("a package's messages are generated for an older protobuf", (NEMO, "protobuf"), "'protobuf<3.21'"),
    ),
    (
        r"Gencode/Runtime versions when loading .*: gencode (?P<version>[\d.]*\d)",
        Conflict(
            "a package's messages are generated for a newer protobuf", (NEMO, "protobuf"), "'protobuf>={version}'"
        ),
    ),
    (
        r"cannot import name '(?P<name>builder|runtime_version)' from 'google\.protobuf",
        Conflict("a package's messages are generated for a newer protobuf", (NEMO, "protobuf"), "--upgrade protobuf"),
    ),
    (
        r"operator torchvision::\w+ does not exist|compiled with different CUDA|libtorchaudio|torchvision/_C|"
        r"undefined symbol: \w*(?:c10|torch|at\d)",
        Conflict(
            "torch, torchaudio and torchvision are not of one release",
            _TORCH,
            "--upgrade --force-reinstall torch torchaudio torchvision",
        ),
    ),
    (
        r"No module named '(?:pkg_resources|distutils)",
        Conflict("a package needs an older setuptools", (NEMO, "setuptools"), "'setuptools<81'"),
    ),
    (
        r"No module named 'nemo(?:\.collections(?:\.asr)?)?'",
        Conflict("NeMo is not installed", (NEMO,), "'nemo_toolkit[asr]'"),
    ),
    (
        r"No module named '(?P<name>\w+)",
        Conflict("NeMo is installed without {name}, which it needs", (NEMO, "{name}"), _REINSTALL),
    ),
    (
        r"cannot import name '\w+' from '(?P<name>\w+)",
        Conflict("NeMo does not work with this {name}", (NEMO, "{name}"), _REINSTALL),
    ),
)


def conflict_in(traceback: str) -> Conflict | None:
    """The known conflict that ended an import; ``None`` if nobody knows it."""
    starts = [match.start() for match in re.finditer(r"^[A-Za-z_][\w.]*(?:Error|Exception)\b", traceback, re.MULTILINE)]
    for text in (traceback[starts[-1] :] if starts else "", traceback):
        for pattern, rule in _RULES:
            match = re.search(pattern, text)
            if match is not None:
                groups = match.groupdict()
                packages = tuple(package.format_map(groups) for package in rule.packages)
                return Conflict(rule.what.format_map(groups), packages, rule.install.format_map(groups))
    return None
