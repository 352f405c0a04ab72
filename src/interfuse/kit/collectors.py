"""What calibration passes add up: squared gradients, input products, channel magnitudes, votes, sensitivities, distances.

Each collector (:class:`~interfuse.kit.passes.Collector`) keeps float64 totals over examples; ``result`` turns them into
statistics. Tensors are [B, ..., channels]; everything before the channels counts as tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interfuse.kit.passes import Seen, Wants


def _zeros(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {name: torch.zeros(tuple(shape), dtype=torch.float64) for name, shape in shapes.items()}


def _count() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def _rows(value: Tensor) -> Tensor:
    """[tokens, channels], float64 on the CPU."""
    return value.reshape(-1, value.shape[-1]).double().cpu()


@dataclass
class SquaredGradients:
    """``mean_s g_s^2``, the diagonal of the empirical Fisher matrix, or ``mean_s (g_s theta)^2``; one loss per example.

    Args:
        shapes: parameter name -> shape. times_weight: multiply the gradient by the weight before squaring.
    """

    shapes: Mapping[str, Sequence[int]]
    times_weight: bool = False

    def __post_init__(self) -> None:
        self.total, self.count = _zeros(self.shapes), _count()
        self._last = -1

    def wants(self) -> Wants:
        """Gradients of the parameters."""
        return Wants(parameters=list(self.shapes))

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds one loss; several losses of one example in a row count as one example."""
        (one,) = seen
        if one.rows[0] != self._last:
            self.count += 1
            self._last = one.rows[0]
        for name, gradient in one.gradients.items():
            if gradient is not None:
                value = gradient.double()
                if self.times_weight:
                    value = value * one.weights[name].double()
                self.total[name] += value.square().cpu()

    def state(self) -> dict[str, Tensor]:
        """The totals."""
        return {**self.total, "": self.count}

    def result(self) -> dict[str, Tensor]:
        """The means, float32."""
        return {name: (total / self.count.clamp(min=1)).float() for name, total in self.total.items()}


@dataclass
class Grams:
    """``X^T X`` of the inputs of modules over all tokens, float64 [channels, channels], and the number of tokens.

    Args:
        sizes: module name -> channels of its input.
    """

    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        self.total = _zeros({n: (s, s) for n, s in self.sizes.items()})
        self.tokens = _zeros(dict.fromkeys(self.sizes, ()))

    def wants(self) -> Wants:
        """Inputs of the modules."""
        return Wants(inputs=list(self.sizes))

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds a batch."""
        for name, value in seen[0].inputs.items():
            x = _rows(value)
            self.total[name].addmm_(x.T, x)
            self.tokens[name] += len(x)

    def state(self) -> dict[str, Tensor]:
        """The totals."""
        return {**{f"gram/{n}": t for n, t in self.total.items()}, **{f"tokens/{n}": t for n, t in self.tokens.items()}}

    def result(self) -> dict[str, Tensor]:
        """``gram/NAME`` and ``tokens/NAME``."""
        return self.state()


@dataclass
class ChannelMeans:
    """``sum over examples of mean over tokens of |x_c|`` of the inputs of modules, float64 [channels].

    Args:
        sizes: module name -> channels of its input.
    """

    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        self.total = _zeros({n: (s,) for n, s in self.sizes.items()})

    def wants(self) -> Wants:
        """Inputs of the modules."""
        return Wants(inputs=list(self.sizes))

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds a batch; every example weighs the same, however long it is."""
        for name, value in seen[0].inputs.items():
            x = value.abs().double().cpu()
            if x.ndim > 2:
                x = x.flatten(1, -2).mean(1)
            self.total[name] += x.reshape(-1, x.shape[-1]).sum(0)

    def state(self) -> dict[str, Tensor]:
        """The totals."""
        return dict(self.total)

    def result(self) -> dict[str, Tensor]:
        """The sums."""
        return self.state()


@dataclass
class Votes:
    """For every weight, examples whose score is at most 0 minus the others: ``score = g theta + price`` (Yang et al. 2026).

    Args:
        shapes: parameter name -> shape. price: parameter name -> what moving the weight costs, of that shape (float64), read
            when an example is seen. zero_passes: whether a score of exactly 0 is a vote for.
    """

    shapes: Mapping[str, Sequence[int]]
    price: Callable[[str], Tensor]
    zero_passes: bool = True

    def __post_init__(self) -> None:
        self.total, self.silent = _zeros(self.shapes), _zeros(self.shapes)

    def wants(self) -> Wants:
        """Gradients of the parameters."""
        return Wants(parameters=list(self.shapes))

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds one example's vote; a weight the loss does not depend on has a sensitivity of 0."""
        (one,) = seen
        for name, gradient in one.gradients.items():
            score = self.price(name).clone()
            if gradient is not None:
                score += (gradient.double() * one.weights[name].double()).cpu()
            votes = score <= 0 if self.zero_passes else score < 0
            self.total[name] += torch.where(votes, 1.0, -1.0)
            self.silent[name] += score == 0

    def state(self) -> dict[str, Tensor]:
        """The totals."""
        return {**self.total, **{f"silent/{n}": t for n, t in self.silent.items()}}

    def result(self) -> dict[str, Tensor]:
        """The balance of votes, float32, and under ``silent/NAME`` how many examples scored exactly 0."""
        return {n: t.float() for n, t in self.state().items()}


@dataclass
class VoteCurve:
    """How many weights would have a positive balance of votes (see :class:`Votes`) under each of several penalties.

    Args:
        shapes: parameter name -> shape. unit: parameter name -> the price at a penalty of 1. penalties: rising, from 0.
    """

    shapes: Mapping[str, Sequence[int]]
    unit: Callable[[str], Tensor]
    penalties: Sequence[float]
    zero_passes: bool = True

    def __post_init__(self) -> None:
        self.total = {n: torch.zeros((len(self.penalties), *s), dtype=torch.int16) for n, s in self.shapes.items()}

    def wants(self) -> Wants:
        """Gradients of the parameters."""
        return Wants(parameters=list(self.shapes))

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds one example's votes under every penalty."""
        (one,) = seen
        for name, gradient in one.gradients.items():
            price = self.unit(name)
            sensitivity = (
                torch.zeros_like(price) if gradient is None else (gradient.double() * one.weights[name].double()).cpu()
            )
            for number, penalty in enumerate(self.penalties):
                score = sensitivity + penalty * price
                votes = score <= 0 if self.zero_passes else score < 0
                self.total[name][number] += votes.to(torch.int16) * 2 - 1

    def state(self) -> dict[str, Tensor]:
        """The totals."""
        return dict(self.total)

    def result(self) -> dict[str, Tensor]:
        """Accepted weights under every penalty, int64 [penalties], by parameter."""
        return {n: (t > 0).flatten(1).sum(1) for n, t in self.total.items()}


@dataclass
class BlockSensitivity:
    """``mean_s sum |theta g_s|`` over the weights of each block.

    Args:
        blocks: parameter name -> the block it belongs to.
    """

    blocks: Mapping[str, str]

    def __post_init__(self) -> None:
        self.total = _zeros(dict.fromkeys(dict.fromkeys(self.blocks.values()), ()))
        self.count = _count()

    def wants(self) -> Wants:
        """Gradients of the parameters."""
        return Wants(parameters=list(self.blocks))

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds one example."""
        (one,) = seen
        self.count += 1
        for name, gradient in one.gradients.items():
            if gradient is not None:
                self.total[self.blocks[name]] += (gradient.double() * one.weights[name].double()).abs().sum().cpu()

    def state(self) -> dict[str, Tensor]:
        """The totals."""
        return {**self.total, "": self.count}

    def result(self) -> dict[str, Tensor]:
        """The means, float64 scalars by block."""
        return {name: total / self.count.clamp(min=1) for name, total in self.total.items()}


@dataclass
class LogitDistance:
    """``mean over examples of mean over tokens of ||z_1 - z_2||_2`` between two models' logits."""

    def __post_init__(self) -> None:
        self.total, self.count = _count(), _count()

    def wants(self) -> Wants:
        """Logits alone."""
        return Wants()

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds a batch as both models saw it."""
        one, two = seen
        gap = torch.linalg.vector_norm(one.logits.double() - two.logits.double(), dim=-1).cpu()
        self.total += gap.reshape(len(gap), -1).mean(1).sum()
        self.count += len(gap)

    def state(self) -> dict[str, Tensor]:
        """The totals."""
        return {"distance": self.total, "": self.count}

    def result(self) -> dict[str, Tensor]:
        """``distance``: a float64 scalar."""
        return {"distance": self.total / self.count.clamp(min=1)}


_MOMENTS = ("n", "x", "y", "xx", "yy", "xy")


@dataclass
class ChannelInformation:
    """Mutual information, in nats, between what two models' blocks give, channel by channel as if Gaussian, averaged.

    ``-1/2 log(1 - rho_c^2)`` with the correlation over all tokens; a channel that does not vary tells nothing.

    Args:
        widths: block (module name) -> channels of its output. most: an upper bound of each channel's information.
    """

    widths: Mapping[str, int]
    most: float = 10.0

    def __post_init__(self) -> None:
        self.total = _zeros({f"{m}/{n}": () if m == "n" else (w,) for n, w in self.widths.items() for m in _MOMENTS})

    def wants(self) -> Wants:
        """Outputs of the blocks."""
        return Wants(outputs=list(self.widths))

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds a batch as both models saw it."""
        one, two = seen
        for name in self.widths:
            x, y = _rows(one.outputs[name]), _rows(two.outputs[name])
            self.total[f"n/{name}"] += len(x)
            for moment, value in zip(_MOMENTS[1:], (x, y, x * x, y * y, x * y), strict=True):
                self.total[f"{moment}/{name}"] += value.sum(0)

    def state(self) -> dict[str, Tensor]:
        """The totals."""
        return dict(self.total)

    def result(self) -> dict[str, Tensor]:
        """The mean over channels, a float64 scalar by block."""
        found = {}
        for name in self.widths:
            n, x, y, xx, yy, xy = (self.total[f"{m}/{name}"] for m in _MOMENTS)
            n = n.clamp(min=1)
            varx, vary, cov = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2, xy / n - x * y / n**2
            flat = (varx <= 1e-12 * xx / n) | (vary <= 1e-12 * yy / n)
            rho2 = torch.where(flat, 0.0, cov**2 / torch.where(flat, 1.0, varx * vary)).clamp(max=1.0)
            found[name] = (-0.5 * torch.log1p(-rho2)).clamp(max=self.most).mean()
        return found
