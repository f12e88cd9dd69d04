"""Trains one of the demo checkpoints on the CPU, about 20 minutes on two cores for 3000 utterances.

    epochs 0..2     loss = CTC                                  the encoder learns to hear
    after that      loss = 0.3 CTC + 0.1 transducer             the predictor and the joint join in

The CTC head of the hybrid model is part of it; the one beside the TDT model is thrown away. The transducer
loss is ``transducer_loss.py``: NeMo's own runs in plain Python on a CPU and takes minutes a batch.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jiwer
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemotrt.errors import UsageError
from recipe.command import run
from recipe.manifest import Utterance, read_manifest
from recipe.models import DECODERS, Decoder, Kind, decode, new_model, padded, quiet_nemo
from recipe.transducer_loss import transducer_loss

CTC_WEIGHT = 0.3
# CTC is a mean per label and the transducer loss a sum per utterance of about ten labels.
TRANSDUCER_WEIGHT = 0.1
SIGMA = 0.02
EVALUATE_EVERY_EPOCHS = 3


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: a linear warm-up of the learning rate times half a cosine down to zero."""

    epochs: int
    ctc_only_epochs: int
    peak_learning_rate: float
    batch_size: int
    warmup_steps: int = 300

    def learning_rate_factor(self, step: int, *, steps: int) -> float:
        return min(1.0, step / self.warmup_steps) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Example:
    """A waveform ``[samples]`` at 16 kHz with its token ids ``[labels]`` and its text."""

    waveform: Tensor
    labels: Tensor
    text: str


def examples_of(utterances: Sequence[Utterance], *, tokenizer: Any) -> list[Example]:
    """All of a split in memory: two hours are 0.5 GB."""
    return [
        Example(torch.from_numpy(u.samples()), torch.tensor(tokenizer.text_to_ids(u.text)), u.text) for u in utterances
    ]


class Objective(torch.nn.Module):
    """The training loss of a NeMo transducer with a CTC head on its encoder."""

    def __init__(self, model: Any, *, kind: Kind) -> None:
        super().__init__()
        self.model = model
        self.durations = tuple(model.cfg.model_defaults.get("tdt_durations", ()))
        self.blank = model.tokenizer.vocab_size
        self.ctc_head = (
            None if kind == "hybrid-streaming" else torch.nn.Linear(model.cfg.encoder.d_model, self.blank + 1)
        )
        self.ctc_loss = torch.nn.CTCLoss(blank=self.blank, zero_infinity=True)

    def forward(self, batch: Sequence[Example], *, ctc_only: bool) -> Tensor:
        """Scalar loss of a batch."""
        signal, samples = padded([example.waveform for example in batch])
        targets = pad_sequence([example.labels for example in batch], batch_first=True)
        target_lengths = torch.tensor([len(example.labels) for example in batch])
        features, feature_frames = self.model.preprocessor(input_signal=signal, length=samples)
        features = self.model.spec_augmentation(input_spec=features, length=feature_frames)
        encoded, frames = self.model.encoder(audio_signal=features, length=feature_frames)
        ctc: Tensor = self.ctc_loss(self._log_probs(encoded).transpose(0, 1), targets, frames, target_lengths)
        if ctc_only:
            return ctc
        predicted, _, _ = self.model.decoder(targets=targets, target_length=target_lengths)
        logits = self.model.joint(encoder_outputs=encoded, decoder_outputs=predicted)
        transducer = transducer_loss(
            logits,
            targets,
            frames=frames,
            target_lengths=target_lengths,
            durations=self.durations,
            sigma=SIGMA if self.durations else 0.0,
        ).mean()
        return CTC_WEIGHT * ctc + TRANSDUCER_WEIGHT * transducer

    def _log_probs(self, encoded: Tensor) -> Tensor:
        """Encoder output ``[batch, D, frames]`` to CTC log probabilities ``[batch, frames, V + 1]``."""
        if self.ctc_head is None:
            log_probs: Tensor = self.model.ctc_decoder(encoder_output=encoded)
            return log_probs
        logits: Tensor = self.ctc_head(encoded.transpose(1, 2))
        return logits.log_softmax(-1)


def train(objective: Objective, examples: Sequence[Example], schedule: Schedule) -> Iterator[float]:
    """Train in place; yields the mean loss after each epoch, with the objective in training mode."""
    batches = batches_of(examples, size=schedule.batch_size)
    steps = schedule.epochs * len(batches)
    optimizer = torch.optim.AdamW(
        objective.parameters(), lr=schedule.peak_learning_rate, betas=(0.9, 0.98), weight_decay=1e-3
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.learning_rate_factor(step, steps=steps))
    console = Console(stderr=True)
    for epoch in range(schedule.epochs):
        objective.train()
        random.shuffle(batches)
        total = 0.0
        for batch in track(batches, f"epoch {epoch}", console=console, transient=True):
            loss = objective(batch, ctc_only=epoch < schedule.ctc_only_epochs)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            rates.step()
            total += loss.item()
        yield total / len(batches)


def batches_of(examples: Sequence[Example], *, size: int) -> list[list[Example]]:
    """Batches of about equally long examples, shortest first."""
    ordered = sorted(examples, key=lambda example: len(example.waveform))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def word_error_rate(model: Any, examples: Sequence[Example], *, decoder: Decoder) -> float:
    """Word error rate of greedy decoding, 1.0 for 100 %. Leaves the model in evaluation mode."""
    model.eval()
    texts = [
        decoded.text
        for batch in batches_of(examples, size=16)
        for decoded in decode(model, [example.waveform for example in batch], decoder=decoder)
    ]
    truth = [example.text for batch in batches_of(examples, size=16) for example in batch]
    return float(jiwer.wer(truth, texts))


def main(
    kind: Annotated[Kind, typer.Argument(help="Which of the two models.")],
    checkpoint: Annotated[Path, typer.Argument(help="The .nemo file to write.")],
    *,
    train_manifest: Annotated[Path, typer.Option("--train", help="Manifest of the training split.")],
    test_manifest: Annotated[Path, typer.Option("--test", help="Manifest of the held-out voices.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder that recipe.tokenizer wrote.")],
    epochs: Annotated[int, typer.Option(min=1)] = 18,
    ctc_only_epochs: Annotated[int, typer.Option(min=0, help="Epochs without the transducer loss.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train a demo checkpoint; save it and print its word error rate every third epoch and after the last."""
    if checkpoint.exists():
        raise UsageError("the checkpoint is already there", where=checkpoint, fix="name another, or remove it")
    if not (tokenizer / "tokenizer.model").is_file():
        raise UsageError(
            "this is not a tokenizer folder",
            where=tokenizer,
            found="no tokenizer.model",
            fix=f"make one with: python -m recipe.tokenizer {train_manifest} {tokenizer}",
        )
    quiet_nemo()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    random.seed(seed)
    objective = Objective(new_model(kind, tokenizer=tokenizer), kind=kind)
    model = objective.model
    train_set = examples_of(read_manifest(train_manifest), tokenizer=model.tokenizer)
    test_set = examples_of(read_manifest(test_manifest), tokenizer=model.tokenizer)
    schedule = Schedule(epochs, ctc_only_epochs, learning_rate, batch_size)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    started = time.monotonic()
    for epoch, loss in enumerate(train(objective, train_set, schedule)):
        typer.echo(f"epoch {epoch}: loss {loss:.3f}, {time.monotonic() - started:.0f} s")
        if epoch % EVALUATE_EVERY_EPOCHS == EVALUATE_EVERY_EPOCHS - 1 or epoch == epochs - 1:
            for decoder in DECODERS[kind]:
                typer.echo(f"  {decoder} WER {word_error_rate(model, test_set, decoder=decoder):.1%}")
            model.save_to(str(checkpoint))


if __name__ == "__main__":
    run(main)
