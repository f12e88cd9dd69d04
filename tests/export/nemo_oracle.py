"""NeMo itself, with arrays in and out in the layouts of the bundle contract."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


def require_nemo() -> None:
    """Skip the test where NeMo is not installed; where it is, make it quiet."""
    pytest.importorskip("nemo.collections.asr")
    logging.getLogger("nemo_logger").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class NemoModel:
    """NeMo modules in inference mode. ``ctc_decoder`` only of hybrids."""

    encoder_module: Any
    decoder: Any
    joint_module: Any
    preprocessor: Any = None
    ctc_decoder: Any = None

    @staticmethod
    def restored(checkpoint: Path) -> NemoModel:
        """A checkpoint as NeMo loads it, without dither and without padding to a multiple of frames."""
        require_nemo()
        import torch
        from nemo.collections.asr.models import ASRModel

        torch.set_num_threads(1)
        model = ASRModel.restore_from(str(checkpoint), map_location="cpu").eval()
        model.preprocessor.featurizer.dither = 0.0
        model.preprocessor.featurizer.pad_to = 0
        return NemoModel(
            model.encoder, model.decoder, model.joint, model.preprocessor, getattr(model, "ctc_decoder", None)
        )

    def features(self, waveforms: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """[B,N] -> [B,F,T], [B]."""
        return self._arrays(
            lambda t: self.preprocessor(input_signal=t(waveforms), length=t(lengths)),
        )

    def encoder(self, audio_signal: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """[B,F,T] -> [B,D,T'], [B]."""
        return self._arrays(lambda t: self.encoder_module(audio_signal=t(audio_signal), length=t(lengths)))

    def predictor(self, y: IntArray, h: FloatArray, c: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """[B,U], [L,B,H] twice -> [B,H,U], next states."""

        def run(t: Any) -> Any:
            g, (h_out, c_out) = self.decoder.predict(t(y), state=[t(h), t(c)], add_sos=False)
            return g.transpose(1, 2), h_out, c_out

        return self._arrays(run)

    def joint(self, encoder_output: FloatArray, predictor_output: FloatArray) -> FloatArray:
        """[B,D,T], [B,H,U] -> raw logits [B,T,U,W]."""
        joint = self.joint_module
        joint.log_softmax = False  # None means: on a CPU, one over tokens and durations together
        return self._arrays(
            lambda t: (
                joint.joint_after_projection(
                    joint.project_encoder(t(encoder_output).transpose(1, 2)),
                    joint.project_prednet(t(predictor_output).transpose(1, 2)),
                ),
            )
        )[0]

    def ctc(self, encoder_output: FloatArray) -> FloatArray:
        """[B,D,T] -> log probabilities [B,T,V+1]."""
        return self._arrays(lambda t: (self.ctc_decoder(encoder_output=t(encoder_output)),))[0]

    @staticmethod
    def _arrays(run: Any) -> Any:
        import torch

        with torch.inference_mode():
            # NeMo writes into some of its inputs.
            return tuple(x.contiguous().numpy() for x in run(lambda array: torch.from_numpy(array.copy())))
