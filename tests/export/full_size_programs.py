"""What the full-size test runs in processes of their own, so that memory can be measured and is given back.

python tests/export/full_size_programs.py PROGRAM ARGUMENT...        prints a JSON object where it has an answer
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

FRAMES = (300, 171)


def checkpoint(size: str, path: str) -> None:
    """Write a random checkpoint."""
    from full_size_checkpoint import SIZES, write_checkpoint

    write_checkpoint(SIZES[size], Path(path))


def nemo_encoder(size: str, checkpoint: str, output: str) -> None:
    """A ragged batch of noise through NeMo's own encoder with the checkpoint's weights."""
    import tarfile

    import torch
    from full_size_checkpoint import SIZES, encoder_config
    from nemo.collections.asr.modules import ConformerEncoder

    with tarfile.open(checkpoint) as tar:
        state = torch.load(tar.extractfile("./model_weights.ckpt"), weights_only=True)
    encoder = ConformerEncoder(**encoder_config(SIZES[size]))
    prefix = "encoder."
    encoder.load_state_dict({name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)})
    generator = torch.Generator().manual_seed(1)
    audio_signal = torch.randn(len(FRAMES), SIZES[size].features, max(FRAMES), generator=generator)
    length = torch.tensor(FRAMES)
    with torch.inference_mode():
        encoded, lengths = encoder.eval()(audio_signal=audio_signal, length=length)
    arrays = {"audio_signal": audio_signal, "length": length, "encoder_output": encoded, "encoded_lengths": lengths}
    np.savez(output, **{name: tensor.numpy() for name, tensor in arrays.items()})


def compare(graph: str, wanted: str) -> None:
    """ONNX Runtime on the same batch: the largest difference on valid frames."""
    import onnxruntime

    expected = np.load(wanted)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found, lengths = session.run(None, {name: expected[name] for name in ("audio_signal", "length")})
    valid = [(found[row, :, :n], expected["encoder_output"][row, :, :n]) for row, n in enumerate(lengths)]
    answer = {
        "max_abs": max(float(np.abs(a - b).max()) for a, b in valid),
        "magnitude": max(float(np.abs(b).max()) for _, b in valid),
        "lengths_equal": lengths.tolist() == expected["encoded_lengths"].tolist(),
    }
    _answer(answer)


def cast(bundle: str, output: str) -> None:
    """The float16 twin of a bundle."""
    from nemotrt.bundle import load_bundle
    from nemotrt.trt.precision import cast_bundle

    cast_bundle(load_bundle(Path(bundle)), Path(output))


def build(bundle: str) -> None:
    """The encoder's plan for single streams."""
    from nemotrt.bundle import load_bundle
    from nemotrt.profiles import axis_ranges, load_profile
    from nemotrt.trt.build import BuildRequest, build_engine

    loaded = load_bundle(Path(bundle))
    ranges = axis_ranges(load_profile("single-stream"), loaded.meta.geometry)
    graph, component = loaded.graph_path("encoder"), loaded.component("encoder")
    result = build_engine(BuildRequest(graph, component, (ranges,), "tensorrt-rtx"))
    _answer({"layers": result.layers, "seconds": result.seconds, "bytes": result.size_bytes})


def _answer(figures: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")


PROGRAMS = {
    "checkpoint": checkpoint,
    "nemo-encoder": nemo_encoder,
    "compare": compare,
    "cast": cast,
    "build": build,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    PROGRAMS[name](*arguments)
