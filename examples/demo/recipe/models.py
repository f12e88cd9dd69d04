"""The two NeMo models of the demo: building them untrained, and their greedy decoding.

waveform -> preprocessor -> encoder -> predictor, joint -> tdt | rnnt
                                  `--> CTC head         -> ctc
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
from nemo.utils import logging as nemo_logging
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Kind = Literal["tdt", "hybrid-streaming"]
Decoder = Literal["tdt", "rnnt", "ctc"]

_RECIPE = Path(__file__).parent
_CONFIGS: dict[Kind, tuple[str, Any]] = {
    "tdt": ("parakeet-style-tdt.yaml", EncDecRNNTBPEModel),
    "hybrid-streaming": ("fastconformer-hybrid-streaming.yaml", EncDecHybridRNNTCTCBPEModel),
}
DECODERS: dict[Kind, tuple[Decoder, ...]] = {"tdt": ("tdt",), "hybrid-streaming": ("rnnt", "ctc")}


@dataclass(frozen=True)
class Decoded:
    """What a decoder found in one utterance."""

    text: str
    token_ids: tuple[int, ...]


def quiet_nemo() -> None:
    """Errors only: NeMo writes its information to stdout, where the results go."""
    nemo_logging.setLevel(nemo_logging.ERROR)


def new_model(kind: Kind, *, tokenizer: Path) -> Any:
    """An untrained NeMo model of ``kind`` with the tokenizer in that folder."""
    name, model_class = _CONFIGS[kind]
    config = OmegaConf.load(_RECIPE / name)
    config.tokenizer.dir = str(tokenizer)
    return model_class(config)


def load_model(kind: Kind, checkpoint: Path) -> Any:
    """A trained model in evaluation mode on the CPU, with ``dither`` and ``pad_to`` at 0."""
    _, model_class = _CONFIGS[kind]
    model = model_class.restore_from(str(checkpoint), map_location="cpu").eval()
    model.preprocessor.featurizer.dither = 0.0
    model.preprocessor.featurizer.pad_to = 0
    return model


def padded(waveforms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Waveforms ``[samples]`` as ``[batch, samples]`` with their lengths ``[batch]``."""
    return pad_sequence(list(waveforms), batch_first=True), torch.tensor([len(w) for w in waveforms])


@torch.no_grad()
def decode(model: Any, waveforms: Sequence[Tensor], *, decoder: Decoder) -> list[Decoded]:
    """NeMo's own greedy decode of 16 kHz waveforms ``[samples]`` as one batch, by a model in evaluation mode."""
    signal, lengths = padded(waveforms)
    features, feature_lengths = model.preprocessor(input_signal=signal, length=lengths)
    encoded, encoded_lengths = model.encoder(audio_signal=features, length=feature_lengths)
    if decoder == "ctc":
        hypotheses = model.ctc_decoding.ctc_decoder_predictions_tensor(
            decoder_outputs=model.ctc_decoder(encoder_output=encoded), decoder_lengths=encoded_lengths
        )
        # NeMo leaves the labels of all frames in a CTC hypothesis.
        blank = model.ctc_decoder.num_classes_with_blank - 1
        return [Decoded(h.text, _without_repeats(h.y_sequence, blank=blank)) for h in hypotheses]
    hypotheses = model.decoding.rnnt_decoder_predictions_tensor(encoder_output=encoded, encoded_lengths=encoded_lengths)
    return [Decoded(h.text, tuple(int(i) for i in h.y_sequence)) for h in hypotheses]


def _without_repeats(labels: Tensor, *, blank: int) -> tuple[int, ...]:
    """CTC's rule: equal neighbours are one label, then blanks go."""
    return tuple(int(i) for i in torch.unique_consecutive(torch.as_tensor(labels)) if i != blank)
