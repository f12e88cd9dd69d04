"""Tiny random NeMo models of any configuration, as modules (the oracle) and as ``.nemo`` archives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import archives
import yaml
from nemo_oracle import NemoModel, require_nemo

from nemotrt.export.archive import CONFIG_MEMBER, WEIGHTS_MEMBER

FEATURES = 20
VOCABULARY = tuple("abcdefg'")
_MODULES = "nemo.collections.asr.modules"
_FIELDS = {"encoder": "encoder_module", "joint": "joint_module"}


@dataclass(frozen=True)
class SmallModel:
    """A checkpoint on disk and the modules it was made from."""

    checkpoint: Path
    nemo: NemoModel


def small_transducer(
    checkpoint: Path,
    *,
    encoder: dict[str, Any] | None = None,
    prednet: dict[str, Any] | None = None,
    jointnet: dict[str, Any] | None = None,
    preprocessor: dict[str, Any] | None = None,
    durations: tuple[int, ...] = (),
    ctc: bool = False,
    seed: int = 0,
) -> SmallModel:
    """An RNNT or, with ``durations``, a TDT over characters; with ``ctc`` a hybrid."""
    from_nemo = _nemo_modules(seed)
    encoder = encoder_options(**(encoder or {}))
    prednet = {"pred_hidden": 12, "pred_rnn_layers": 1, "dropout": 0.0} | (prednet or {})
    jointnet = {"encoder_hidden": encoder["d_model"], "pred_hidden": 12, "joint_hidden": 10} | (jointnet or {})
    jointnet = {"activation": "relu", "dropout": 0.1} | jointnet
    decoder = {"prednet": prednet, "vocab_size": len(VOCABULARY)}
    joint = {"jointnet": jointnet, "num_classes": len(VOCABULARY), "vocabulary": list(VOCABULARY)}
    joint |= {"num_extra_outputs": len(durations)}
    modules, config = _front_end(from_nemo, encoder, preprocessor)
    modules |= {
        "encoder": _randomized(from_nemo.ConformerEncoder(**encoder)),
        "decoder": _randomized(from_nemo.RNNTDecoder(**decoder)),
        "joint": _randomized(from_nemo.RNNTJoint(**joint)),
    }
    config |= {
        "encoder": _section("ConformerEncoder", encoder),
        "decoder": _section("RNNTDecoder", decoder),
        "joint": _section("RNNTJoint", joint),
        "decoding": {"durations": list(durations)},
    }
    if ctc:
        head = _ctc_head(encoder)
        modules["ctc_decoder"] = _randomized(from_nemo.ConvASRDecoder(**head))
        config["aux_ctc"] = {"decoder": _section("ConvASRDecoder", head)}
    _save(checkpoint, config, modules)
    return SmallModel(checkpoint, NemoModel(**{_FIELDS.get(name, name): module for name, module in modules.items()}))


def small_ctc(checkpoint: Path, *, encoder: dict[str, Any] | None = None, seed: int = 0) -> SmallModel:
    """A CTC model over characters."""
    from_nemo = _nemo_modules(seed)
    encoder = encoder_options(**(encoder or {}))
    head = _ctc_head(encoder)
    modules, config = _front_end(from_nemo, encoder, None)
    modules |= {
        "encoder": _randomized(from_nemo.ConformerEncoder(**encoder)),
        "decoder": _randomized(from_nemo.ConvASRDecoder(**head)),
    }
    config |= {"encoder": _section("ConformerEncoder", encoder), "decoder": _section("ConvASRDecoder", head)}
    _save(checkpoint, config, modules)
    return SmallModel(checkpoint, NemoModel(modules["encoder"], None, None, ctc_decoder=modules["decoder"]))


def _front_end(
    from_nemo: Any, encoder: dict[str, Any], options: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Modules and config of the preprocessor; none for a model of other features than ``FEATURES`` mel bins."""
    if encoder["feat_in"] != FEATURES:
        return {}, {}
    options = {"features": FEATURES, "pad_to": 0} | (options or {})
    module = from_nemo.AudioToMelSpectrogramPreprocessor(**options).eval()
    return {"preprocessor": module}, {"preprocessor": _section("AudioToMelSpectrogramPreprocessor", options)}


def _ctc_head(encoder: dict[str, Any]) -> dict[str, Any]:
    return {"feat_in": encoder["d_model"], "num_classes": len(VOCABULARY), "vocabulary": list(VOCABULARY)}


def encoder_options(**options: Any) -> dict[str, Any]:
    """Arguments of ``ConformerEncoder`` for two small layers, with ``options`` on top."""
    return {
        "feat_in": FEATURES, "n_layers": 2, "d_model": 16, "n_heads": 2, "ff_expansion_factor": 2,
        "subsampling": "dw_striding", "subsampling_factor": 8, "subsampling_conv_channels": 6,
        "conv_kernel_size": 5, "pos_emb_max_len": 64,
    } | options  # fmt: skip


def _nemo_modules(seed: int) -> Any:
    require_nemo()
    import torch
    from nemo.collections.asr import modules

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return modules


def _randomized(module: Any) -> Any:
    """Nothing stays at the zero or one that it was born with; batch norm gets statistics as of some training."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1 or "pos_bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.5)
            elif name.endswith("running_var"):
                buffer.uniform_(0.2, 2.0)
    return module.eval()


def _section(target: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": f"{_MODULES}.{target}", **options}


def _save(checkpoint: Path, config: dict[str, Any], modules: dict[str, Any]) -> None:
    state = {
        f"{prefix}.{name}": tensor for prefix, module in modules.items() for name, tensor in module.state_dict().items()
    }
    members = {CONFIG_MEMBER: yaml.safe_dump(config).encode(), WEIGHTS_MEMBER: archives.state_bytes(state)}
    archives.write_archive(checkpoint, members)
