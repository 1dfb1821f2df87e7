"""What models predict at each position, from logits that come in slices of the vocabulary.

No logits are kept: of each position a few float64 numbers are, from which its likelihood and its
divergence follow once all of the vocabulary has passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

_ELEMENTS_AT_ONCE = 1 << 18  # logits worked on together; a few float64 copies of it live


class Predictions:
    """One model's predictions at n positions, by what has passed of the vocabulary.

    float64 [n]: `largest` logit; `total`, the sum of exp(logit - largest); `wanted`, the target's
    logit. `top`, int64 [n], is the first token with the largest logit.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.largest = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        self.total = torch.zeros_like(self.largest)
        self.wanted = self.largest.clone()
        self.top = torch.zeros(count, dtype=torch.int64, device=device)

    @property
    def log_total(self) -> Tensor:
        """The logarithm of the sum of exp(logit)."""
        return self.largest + self.total.log()

    @property
    def nll(self) -> Tensor:
        """Negative log likelihood of each target, in nats."""
        return self.log_total - self.wanted

    def add(self, rows: slice, first: int, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Take logits [rows, v] of the tokens from `first` on.

        Returns logits, exp(logits - largest), both float64, and the factor that former sums of
        the latter have shrunk by, [rows].
        """
        before, most = self.largest[rows], logits.amax(-1).double()
        if bool((more := most > before).any()):  # finding the place takes longer
            self.top[rows] = self.top[rows].masked_scatter(more, logits[more].argmax(-1) + first)
        largest = torch.maximum(before, most)
        finite = largest.masked_fill(largest == -torch.inf, 0.0)
        wide = logits.double()
        weights = (wide - finite[:, None]).exp_()
        shrunk = (before - finite).exp_()
        self.total[rows] = self.total[rows] * shrunk + weights.sum(-1)
        self.largest[rows] = largest
        inside = (targets >= first) & (targets < first + logits.shape[1])
        place = (targets - first).clamp(0, logits.shape[1] - 1)
        found = wide.gather(-1, place[:, None])[:, 0]
        self.wanted[rows] = torch.where(inside, found, self.wanted[rows])
        return wide, weights, shrunk


class SideBySide:
    """Models beside a base at n positions. targets: int64 [n], the tokens that come.

    Of each model `gaps`, float64 [n], has the sum of exp(x - largest x) (x - y) over the tokens,
    x being logits of the base and y its own. With s the sum of exp(x - largest x), KL(base ||
    model) is gap / s less the difference of both log sums of exp(logit), all in float64: a
    divergence of 1e-8 has four digits still.
    """

    def __init__(self, targets: Tensor, models: int) -> None:
        self._targets = targets
        count, device = len(targets), targets.device
        self.base = Predictions(count, device)
        self.models = [Predictions(count, device) for _ in range(models)]
        self._gaps = torch.zeros(models, count, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, start: int, first: int, logits: Sequence[Tensor]) -> None:
        """Take logits [rows, v] of the base and of each model, in this order.

        `start` is the position of the first row, `first` the token of the first column. Slices of
        the vocabulary come in order, each once for each position.
        """
        rows, tokens = logits[0].shape
        step = max(1, _ELEMENTS_AT_ONCE // tokens)
        for place in range(0, rows, step):
            parts = [each[place : place + step].float() for each in logits]
            self._add(slice(start + place, start + place + len(parts[0])), first, parts)

    def _add(self, rows: slice, first: int, logits: Sequence[Tensor]) -> None:
        targets = self._targets[rows]
        ours, weights, shrunk = self.base.add(rows, first, logits[0], targets)
        for gaps, model, given in zip(self._gaps, self.models, logits[1:], strict=True):
            theirs, *_ = model.add(rows, first, given, targets)
            difference = torch.sub(ours, theirs, out=theirs)
            found = torch.linalg.vecdot(weights, difference)
            if not bool(found.isfinite().all()):  # what the base excludes does not count
                found = (weights * difference.masked_fill_(weights == 0, 0.0)).sum(-1)
            former = gaps[rows]  # may be infinite
            gaps[rows] = torch.where(shrunk > 0, former * shrunk, 0.0) + found

    def divergence(self, model: int) -> Tensor:
        """KL(base || model) in nats, float64 [n]."""
        difference = self.base.log_total - self.models[model].log_total
        return (self._gaps[model] / self.base.total - difference).clamp_(min=0)

    def windows(self, model: int, length: int) -> Iterator[tuple[list[float], Tensor]]:
        """Of every `length` positions: seven sums, and the divergence of each, float32.

        Summed are both negative log likelihoods, divergence, and the positions where the top token
        is the same, went from right to wrong, from wrong to right, and from one wrong to another.
        """
        base, other, divergence = self.base, self.models[model], self.divergence(model)
        same = base.top == other.top
        right, right_now = base.top == self._targets, other.top == self._targets
        parts = (
            base.nll, other.nll, divergence, same,
            right & ~same, right_now & ~same, ~same & ~right & ~right_now,
        )  # fmt: skip
        sums = torch.stack([part.double().view(-1, length).sum(1) for part in parts], dim=1)
        yield from zip(sums.tolist(), divergence.float().cpu().view(-1, length), strict=True)

    def state(self) -> dict[str, Tensor]:
        """All that is known, to be kept in a file."""
        return {"gaps": self._gaps, **dict(self._named())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._gaps.copy_(state["gaps"])
        for name, tensor in self._named():
            tensor.copy_(state[name])

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for index, each in enumerate((self.base, *self.models)):
            for name, tensor in vars(each).items():
                yield f"{index}.{name}", tensor


def kl_divergence(base: Tensor, model: Tensor) -> Tensor:
    """KL(base || model) in nats, float64 [...], of logits [..., vocabulary]."""
    targets = torch.zeros(base.shape[:-1].numel(), dtype=torch.int64, device=base.device)
    found = SideBySide(targets, 1)
    found.add(0, 0, (base.flatten(0, -2), model.flatten(0, -2)))
    return found.divergence(0).view(base.shape[:-1])
