r"""RNNT and TDT negative log likelihood, vectorised over utterances and anti-diagonals.

Node ``(t, u)`` of the lattice: ``t`` frames consumed, ``u`` labels emitted. Every way of moving on is an
arc ``(d, e, w)``: it advances ``d`` frames, emits ``e`` labels (0 for blank, 1 for the next label) and has the
log probability ``w(t, u)`` at the node where it starts:

    RNNT     (1, 0, log p(blank))                          (0, 1, log p(label u+1))
    TDT      (d, 0, log p(blank) + log p(d)), d >= 1       (d, 1, log p(label u+1) + log p(d)), d >= 0

The forward variable sums over the arcs that arrive, the likelihood over the blanks that end exactly at frame T:

    alpha(0, 0) = 0        alpha(t, u) = logsumexp over arcs of  alpha(t-d, u-e) + w(t-d, u-e)
    log P = logsumexp over blank arcs of  alpha(T-d, U) + w(T-d, U)

An arc leads from anti-diagonal ``n = t + u`` to ``n + d + e``, and ``d + e >= 1``: a diagonal depends on
earlier ones only. Stored skewed, ``x[n, t] = x(t, n - t)``, all nodes of a diagonal are one vector and an arc
is a shift along ``t``, so the sum takes ``T + U`` steps instead of ``T * U``; autograd gives the gradient.

Sources: A. Graves, Sequence Transduction with Recurrent Neural Networks, 2012; H. Xu et al., Efficient
Sequence Transduction by Jointly Predicting Tokens and Durations, 2023 (TDT, sigma); T. Bagby et al., Efficient
Implementation of Recurrent Neural Network Transducer in TensorFlow, 2018 (the skew).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Log probability of what cannot happen. Finite: a logsumexp of nothing but -inf has a NaN gradient.
IMPOSSIBLE = -1e30


@dataclass(frozen=True)
class _Arc:
    """A move in the lattice; ``log_probs [batch, T, U + 1]`` at the node where it starts."""

    frames: int
    labels: int
    log_probs: Tensor


def transducer_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    frames: Tensor,
    target_lengths: Tensor,
    durations: Sequence[int] = (),
    sigma: float = 0.0,
) -> Tensor:
    """Negative log likelihood of each utterance, ``[batch]``, in nats. Padding has no influence on it.

    Args:
        logits: raw joint output ``[batch, T, U + 1, W]``; W: the labels, blank, then one per duration.
        targets: label ids ``[batch, U]``, int64; any valid id beyond the length.
        frames: valid frames ``[batch]``, int64, at least 1.
        target_lengths: valid labels ``[batch]``, int64.
        durations: frames that each duration output stands for; empty for RNNT.
        sigma: TDT's logit under-normalisation: subtracted from each token's log probability, which favours
            longer durations. 0 gives the true likelihood.

    An utterance without any alignment (durations that cannot add up to its frames) has a loss of about 1e30.
    """
    arcs = _arcs(logits, targets, durations=durations, sigma=sigma)
    skewed = [_Arc(arc.frames, arc.labels, _skew(arc.log_probs)) for arc in arcs]
    alpha = _forward(skewed)
    return -_log_likelihood(alpha, arcs, frames=frames, target_lengths=target_lengths)


def _arcs(logits: Tensor, targets: Tensor, *, durations: Sequence[int], sigma: float) -> list[_Arc]:
    tokens = logits[..., : logits.shape[-1] - len(durations)].log_softmax(-1) - sigma
    blank = tokens[..., -1]
    ids = targets[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    label = tokens[:, :, :-1].gather(-1, ids).squeeze(-1)
    label = torch.nn.functional.pad(label, (0, 1), value=IMPOSSIBLE)  # no label follows the last one
    if not durations:
        return [_Arc(1, 0, blank), _Arc(0, 1, label)]
    duration = logits[..., -len(durations) :].log_softmax(-1).unbind(-1)
    blanks = [_Arc(d, 0, blank + p) for d, p in zip(durations, duration, strict=True) if d > 0]
    return blanks + [_Arc(d, 1, label + p) for d, p in zip(durations, duration, strict=True)]


def _skew(nodes: Tensor) -> Tensor:
    """``[batch, T, U + 1]`` to diagonals ``[batch, T + U, T]``, impossible outside of the lattice."""
    _, frames, states = nodes.shape
    t = torch.arange(frames, device=nodes.device)
    u = torch.arange(frames + states - 1, device=nodes.device)[:, None] - t
    diagonals = nodes[:, t.expand_as(u), u.clamp(0, states - 1)]
    return diagonals.masked_fill((u < 0) | (u >= states), IMPOSSIBLE)


def _forward(arcs: Sequence[_Arc]) -> Tensor:
    """Forward variables on skewed diagonals, ``[batch, T + U, T]``."""
    weights = [arc.log_probs.unbind(1) for arc in arcs]
    origin = torch.full_like(weights[0][0], IMPOSSIBLE)
    origin[:, 0] = 0.0
    alphas = [origin]
    for n in range(1, len(weights[0])):
        arrivals = []
        for arc, weight in zip(arcs, weights, strict=True):
            source = n - arc.frames - arc.labels
            if source >= 0:
                arrivals.append(_later(alphas[source] + weight[source], arc.frames))
        alphas.append(
            torch.logsumexp(torch.stack(arrivals), dim=0) if arrivals else torch.full_like(origin, IMPOSSIBLE)
        )
    return torch.stack(alphas, dim=1)


def _later(diagonal: Tensor, frames: int) -> Tensor:
    """``[batch, T]`` moved ``frames`` later; what moves past the last frame is dropped."""
    kept = diagonal[:, : max(diagonal.shape[1] - frames, 0)]
    return torch.nn.functional.pad(kept, (diagonal.shape[1] - kept.shape[1], 0), value=IMPOSSIBLE)


def _log_likelihood(alpha: Tensor, arcs: Sequence[_Arc], *, frames: Tensor, target_lengths: Tensor) -> Tensor:
    row = torch.arange(len(frames), device=alpha.device)
    endings = []
    for arc in arcs:
        if arc.labels == 0:
            t = frames - arc.frames
            start = t.clamp_min(0)
            ending = alpha[row, start + target_lengths, start] + arc.log_probs[row, start, target_lengths]
            endings.append(ending.masked_fill(t < 0, IMPOSSIBLE))
    return torch.logsumexp(torch.stack(endings), dim=0)
