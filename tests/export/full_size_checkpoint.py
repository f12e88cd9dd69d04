"""Random ``.nemo`` checkpoints of the sizes people really have, written without NeMo; NeMo restores them.

    python tests/export/full_size_checkpoint.py parakeet-tdt-0.6b out.nemo

Configs follow NeMo's published recipes; weights are drawn so that activations keep their scale through the layers.
"""

from __future__ import annotations

import sys
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

RATE, FFT, WINDOW = 16000, 512, 400
KERNEL, CHANNELS, HEADS = 9, 256, 8


@dataclass(frozen=True)
class Size:
    """A FastConformer transducer with a character vocabulary; durations make it a TDT."""

    layers: int
    d_model: int
    features: int
    bias: bool
    xscaling: bool
    vocabulary: int
    predictor_layers: int
    durations: tuple[int, ...]

    hidden = 640


SIZES = {
    "parakeet-tdt-0.6b": Size(24, 1024, 128, False, False, 1024, 2, (0, 1, 2, 3, 4)),
    "fastconformer-large": Size(17, 512, 80, True, True, 1024, 1, ()),
    # Neither large nor fast to be right: for trying out what uses the sizes above.
    "small": Size(2, 64, 80, False, False, 32, 1, (0, 1, 2)),
    # As many nodes as the large one has, in a second.
    "deep": Size(17, 64, 80, True, True, 32, 1, ()),
}


def write_checkpoint(size: Size, path: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint. Holds all weights in memory: run it in a process of its own for the large ones."""
    weights = path.with_suffix(".ckpt")
    torch.save(OrderedDict(_weights(size, torch.Generator().manual_seed(seed))), weights)
    config = path.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(nemo_config(size)), encoding="utf-8")
    with tarfile.open(path, "w") as tar:
        for member, source in (("model_config.yaml", config), ("model_weights.ckpt", weights)):
            tar.add(source, arcname=f"./{member}")
            source.unlink()
    return path


def nemo_config(size: Size) -> dict[str, Any]:
    """``model_config.yaml`` as NeMo saves it, without what only training asks for."""
    vocabulary = [chr(0x4E00 + index) for index in range(size.vocabulary)]
    hidden = {"enc_hidden": size.d_model, "pred_hidden": size.hidden, "joint_hidden": size.hidden}
    tdt = {"loss_name": "tdt", "tdt_kwargs": {"durations": list(size.durations), "sigma": 0.02, "omega": 0.1}}
    decoding: dict[str, Any] = {"strategy": "greedy", "greedy": {"max_symbols": 10}}
    return {
        "target": "nemo.collections.asr.models.rnnt_models.EncDecRNNTModel",
        "sample_rate": RATE,
        "compute_eval_loss": False,
        "labels": vocabulary,
        "model_defaults": hidden,
        "preprocessor": _preprocessor(size),
        "encoder": encoder_config(size) | {"_target_": "nemo.collections.asr.modules.ConformerEncoder"},
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": size.hidden, "pred_rnn_layers": size.predictor_layers, "dropout": 0.0},
            "vocab_size": size.vocabulary,
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "fuse_loss_wer": False,
            "jointnet": {
                "encoder_hidden": size.d_model,
                "pred_hidden": size.hidden,
                "joint_hidden": size.hidden,
                "activation": "relu",
                "dropout": 0.2,
            },
            "num_extra_outputs": len(size.durations),
            "num_classes": size.vocabulary,
            "vocabulary": list(vocabulary),
        },
        "decoding": decoding | ({"model_type": "tdt", "durations": list(size.durations)} if size.durations else {}),
        "loss": tdt if size.durations else {"loss_name": "default"},
    }


def encoder_config(size: Size) -> dict[str, Any]:
    """Arguments of NeMo's ``ConformerEncoder``."""
    return {
        "feat_in": size.features,
        "n_layers": size.layers,
        "d_model": size.d_model,
        "use_bias": size.bias,
        "xscaling": size.xscaling,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": CHANNELS,
        "self_attention_model": "rel_pos",
        "n_heads": HEADS,
        "conv_kernel_size": KERNEL,
        "conv_norm_type": "batch_norm",
        "ff_expansion_factor": 4,
        "pos_emb_max_len": 5000,
        "dropout": 0.0,
        "dropout_emb": 0.0,
        "dropout_att": 0.0,
    }


def _preprocessor(size: Size) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": RATE,
        "normalize": "per_feature",
        "window_size": WINDOW / RATE,
        "window_stride": 0.01,
        "window": "hann",
        "features": size.features,
        "n_fft": FFT,
        "dither": 0.0,
        "pad_to": 0,
    }


def _weights(size: Size, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    def matrix(name: str, *shape: int, bias: bool) -> Iterator[tuple[str, torch.Tensor]]:
        fan_in = torch.Size(shape[1:]).numel()
        yield f"{name}.weight", torch.randn(shape, generator=generator) / fan_in**0.5
        if bias:
            yield f"{name}.bias", torch.randn(shape[0], generator=generator) / 10

    def norm(name: str, width: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.weight", 1 + torch.randn(width, generator=generator) / 10
        yield f"{name}.bias", torch.randn(width, generator=generator) / 10

    d, d_ff, hidden = size.d_model, 4 * size.d_model, size.hidden
    yield "preprocessor.featurizer.window", torch.hann_window(WINDOW, periodic=False)
    yield "preprocessor.featurizer.fb", torch.rand(1, size.features, FFT // 2 + 1, generator=generator) / FFT
    yield from matrix("encoder.pre_encode.conv.0", CHANNELS, 1, 3, 3, bias=True)
    for index in (2, 5):
        yield from matrix(f"encoder.pre_encode.conv.{index}", CHANNELS, 1, 3, 3, bias=True)
        yield from matrix(f"encoder.pre_encode.conv.{index + 1}", CHANNELS, CHANNELS, 1, 1, bias=True)
    yield from matrix("encoder.pre_encode.out", d, CHANNELS * -(-size.features // 8), bias=True)
    for layer in range(size.layers):
        at = f"encoder.layers.{layer}"
        for block in ("feed_forward1", "self_att", "conv", "feed_forward2"):
            yield from norm(f"{at}.norm_{block}", d)
        yield from norm(f"{at}.norm_out", d)
        for block in ("feed_forward1", "feed_forward2"):
            yield from matrix(f"{at}.{block}.linear1", d_ff, d, bias=size.bias)
            yield from matrix(f"{at}.{block}.linear2", d, d_ff, bias=size.bias)
        for part in ("q", "k", "v", "out"):
            yield from matrix(f"{at}.self_attn.linear_{part}", d, d, bias=size.bias)
        yield from matrix(f"{at}.self_attn.linear_pos", d, d, bias=False)
        for part in "uv":
            yield f"{at}.self_attn.pos_bias_{part}", torch.randn(HEADS, d // HEADS, generator=generator) / 10
        yield from matrix(f"{at}.conv.pointwise_conv1", 2 * d, d, 1, bias=size.bias)
        yield from matrix(f"{at}.conv.depthwise_conv", d, 1, KERNEL, bias=size.bias)
        yield from matrix(f"{at}.conv.pointwise_conv2", d, d, 1, bias=size.bias)
        yield from norm(f"{at}.conv.batch_norm", d)
        yield f"{at}.conv.batch_norm.running_mean", torch.randn(d, generator=generator) / 10
        yield f"{at}.conv.batch_norm.running_var", 0.5 + torch.rand(d, generator=generator)
        yield f"{at}.conv.batch_norm.num_batches_tracked", torch.tensor(1000)
    yield "decoder.prediction.embed.weight", torch.randn(size.vocabulary + 1, hidden, generator=generator) / 10
    for layer in range(size.predictor_layers):
        for kind in ("ih", "hh"):
            for name, tensor in matrix("", 4 * hidden, hidden, bias=True):
                yield f"decoder.prediction.dec_rnn.lstm.{name[1:]}_{kind}_l{layer}", tensor
    yield from matrix("joint.pred", hidden, hidden, bias=True)
    yield from matrix("joint.enc", hidden, d, bias=True)
    yield from matrix("joint.joint_net.2", size.vocabulary + 1 + len(size.durations), hidden, bias=True)


if __name__ == "__main__":
    write_checkpoint(SIZES[sys.argv[1]], Path(sys.argv[2]))
