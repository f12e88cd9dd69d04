"""The transducer loss against a sum over every alignment, written out one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

pytest.importorskip("torch")

import torch
from recipe.transducer_loss import transducer_loss

TDT_DURATIONS = (0, 1, 2, 3, 4)
RNNT: tuple[int, ...] = ()
SEEDS = range(6)


@dataclass(frozen=True)
class Batch:
    """A ragged batch of random joint outputs in float64, with the tensors that the loss takes."""

    logits: torch.Tensor
    targets: torch.Tensor
    frames: torch.Tensor
    target_lengths: torch.Tensor
    durations: tuple[int, ...]
    sigma: float = 0.0

    def loss(self) -> torch.Tensor:
        return transducer_loss(
            self.logits,
            self.targets,
            frames=self.frames,
            target_lengths=self.target_lengths,
            durations=self.durations,
            sigma=self.sigma,
        )


def ragged_batch(seed: int, *, durations: tuple[int, ...], labels: int = 3) -> Batch:
    """Five utterances of 1 to 5 frames with 0 to 3 labels, one of them as long as the padding."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.tensor([5, *torch.randint(1, 6, (4,), generator=generator).tolist()])
    target_lengths = torch.tensor([3, *torch.randint(0, 4, (4,), generator=generator).tolist()])
    logits = torch.randn(5, 5, 4, labels + 1 + len(durations), generator=generator, dtype=torch.float64)
    targets = torch.randint(0, labels, (5, 3), generator=generator)
    return Batch(2 * logits, targets, frames, target_lengths, durations)


def log_likelihood_by_enumeration(batch: Batch, row: int) -> float:
    return math.log(math.fsum(math.exp(p) for p in alignments(batch, row)))


def alignments(batch: Batch, row: int) -> Iterator[float]:
    """Log probability of each alignment of one utterance: the only oracle, without any dynamic programming."""
    frames, labels = int(batch.frames[row]), int(batch.target_lengths[row])
    width = batch.logits.shape[-1] - len(batch.durations)
    tokens = (batch.logits[row, ..., :width].log_softmax(-1) - batch.sigma).tolist()
    durations = batch.logits[row, ..., width:].log_softmax(-1).tolist()
    blank = width - 1

    def moves(t: int, u: int) -> Iterator[tuple[int, int, float]]:
        """(token, frames it takes, log probability) of what may come next."""
        following = [blank] if u == labels else [blank, int(batch.targets[row, u])]
        for token in following:
            if not batch.durations:
                yield token, int(token == blank), tokens[t][u][token]
            for k, duration in enumerate(batch.durations):
                if token != blank or duration > 0:
                    yield token, duration, tokens[t][u][token] + durations[t][u][k]

    def walk(t: int, u: int, so_far: float) -> Iterator[float]:
        for token, advance, log_probability in moves(t, u):
            total = so_far + log_probability
            if t + advance < frames:
                yield from walk(t + advance, u + (token != blank), total)
            elif t + advance == frames and token == blank and u == labels:
                yield total

    return walk(0, 0, 0.0)


@pytest.mark.parametrize("durations", [RNNT, TDT_DURATIONS, (1, 2), (0, 1, 4)], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_equals_the_sum_over_all_alignments(seed: int, durations: tuple[int, ...]) -> None:
    batch = ragged_batch(seed, durations=durations)
    losses = batch.loss()
    possible = [row for row in range(5) if next(alignments(batch, row), None) is not None]
    assert len(possible) >= 2
    for row in possible:
        assert losses[row].item() == pytest.approx(-log_likelihood_by_enumeration(batch, row), abs=1e-9)


@pytest.mark.parametrize("sigma", [0.02, 0.5])
def test_sigma_is_taken_off_every_token(sigma: float) -> None:
    batch = replace(ragged_batch(0, durations=TDT_DURATIONS), sigma=sigma)
    expected = [-log_likelihood_by_enumeration(batch, row) for row in range(5)]
    assert batch.loss().tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("durations", [RNNT, TDT_DURATIONS], ids=["rnnt", "tdt"])
def test_an_utterance_with_one_frame_and_no_label_is_a_single_blank(durations: tuple[int, ...]) -> None:
    batch = replace(
        ragged_batch(1, durations=durations),
        frames=torch.ones(5, dtype=torch.int64),
        target_lengths=torch.zeros(5, dtype=torch.int64),
    )
    blank = batch.logits[:, 0, 0, :4].log_softmax(-1)[:, -1]
    one_frame = batch.logits[:, 0, 0, 4:].log_softmax(-1)[:, 1] if durations else 0.0
    torch.testing.assert_close(batch.loss(), -(blank + one_frame))


@pytest.mark.parametrize("durations", [RNNT, TDT_DURATIONS], ids=["rnnt", "tdt"])
def test_padding_changes_neither_loss_nor_gradient(durations: tuple[int, ...]) -> None:
    batch = ragged_batch(2, durations=durations)
    spoiled = batch.logits.clone()
    for row, (frames, labels) in enumerate(zip(batch.frames, batch.target_lengths, strict=True)):
        spoiled[row, frames:] = 50.0
        spoiled[row, :, labels + 1 :] = -50.0
    plain_loss, plain_gradient = loss_and_gradient(batch)
    spoiled_loss, spoiled_gradient = loss_and_gradient(replace(batch, logits=spoiled))
    torch.testing.assert_close(spoiled_loss, plain_loss)
    torch.testing.assert_close(spoiled_gradient, plain_gradient)


@pytest.mark.parametrize("durations", [RNNT, TDT_DURATIONS], ids=["rnnt", "tdt"])
def test_gradient_equals_finite_differences(durations: tuple[int, ...]) -> None:
    batch = ragged_batch(3, durations=durations)
    logits = batch.logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: replace(batch, logits=x).loss(), (logits,))


@pytest.mark.parametrize("durations", [RNNT, TDT_DURATIONS], ids=["rnnt", "tdt"])
def test_gradient_is_finite_at_the_size_of_a_training_batch_in_float32(durations: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    frames, target_lengths = torch.tensor([60, 31, 1]), torch.tensor([25, 0, 1])
    logits = 30 * torch.randn(3, 60, 26, 97 + len(durations), generator=generator)
    targets = torch.randint(0, 96, (3, 25), generator=generator)
    loss, gradient = loss_and_gradient(Batch(logits, targets, frames, target_lengths, durations))
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().amax(dim=(1, 2, 3)).gt(0).all()


def test_an_utterance_without_any_alignment_has_a_huge_loss_and_a_finite_gradient() -> None:
    batch = replace(ragged_batch(5, durations=(2,)), frames=torch.tensor([5, 3, 1, 4, 2]))
    loss, gradient = loss_and_gradient(replace(batch, target_lengths=torch.tensor([1, 1, 0, 1, 0])))
    assert (loss > 1e29).tolist() == [True, True, True, False, False]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("misread", ["targets", "durations"])
def test_the_enumeration_notices_a_loss_that_misreads_its_inputs(misread: str) -> None:
    batch = ragged_batch(0, durations=TDT_DURATIONS)
    wrong = {
        "targets": replace(batch, targets=(batch.targets + 1) % 3),
        "durations": replace(batch, durations=TDT_DURATIONS[::-1]),
    }[misread]
    assert wrong.loss()[0].item() != pytest.approx(-log_likelihood_by_enumeration(batch, 0), abs=1e-3)


def loss_and_gradient(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    logits = batch.logits.detach().clone().requires_grad_()
    loss = replace(batch, logits=logits).loss()
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient
