"""Trainable augmentations: modules from inputs to changed inputs, differentiable in their own few parameters; and MixDistribution.

All randomness comes from the generator passed to ``forward``. At ``start=0`` every augmentor but ``Mix`` is exactly the
identity; a symmetric spread of exactly 0 has no mean gradient there, so training starts from a small positive one.
Images are float [B, C, H, W]; whoever calls keeps them in their valid range (:func:`clamp_through`). Of texts factors of the word
vectors are made (:class:`Words`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interfuse.core.errors import InterfuseError


class Augmentor(Protocol):
    """What every augmentor offers."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor: ...

    def diagnostics(self) -> dict[str, float]:
        """Its parameters in human units."""
        ...


def clamp_through(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """``x`` cut to [low, high]; gradients pass as if it were not (straight-through)."""
    return x + (x.clamp(low, high) - x).detach()


def noise_like(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers of a shape, drawn on the generator's device, then on ``x``'s."""
    return torch.randn(shape, generator=generator, device=generator.device).to(x)


def mix_distribution(x: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """MixDistribution: each image keeps its content and takes mean and deviation between its own and a partner's, per channel.

    Args:
        x: images [B, C, H, W], more than one pixel. share: of the own statistics [B]. partner: rows [B].

    Raises:
        InterfuseError: ``input.shape`` for images of one pixel.
    """
    if x.shape[2] * x.shape[3] < 2:
        raise InterfuseError("input.shape", "one pixel has no deviation", where=f"images {tuple(x.shape)}")
    return _renewed(x, x.mean(dim=(2, 3), keepdim=True), x.var(dim=(2, 3), keepdim=True), share, partner)


def mix_words(words: Tensor, mask: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """The same for texts: the numbers of word vectors are the channels, tokens that are no padding the places.

    Args:
        words: [B, L, D]. mask: 1 for tokens, 0 for padding [B, L]. share, partner: [B].
    """
    there = mask.unsqueeze(-1).to(words.dtype)
    count = there.sum(dim=1, keepdim=True)
    mean = (words * there).sum(dim=1, keepdim=True) / count.clamp_min(1)
    variance = ((words - mean).square() * there).sum(dim=1, keepdim=True) / (count - 1).clamp_min(1)
    return torch.where(there > 0, _renewed(words, mean, variance, share, partner), words)


def _renewed(x: Tensor, mean: Tensor, variance: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """``x`` with means and (unbiased) variances mixed with those of the partners."""
    deviation = (variance + 1e-6).sqrt()
    own = share.to(x.dtype).reshape(-1, *([1] * (x.ndim - 1)))
    new_deviation = own * deviation + (1 - own) * deviation[partner]
    return (x - mean) / deviation * new_deviation + own * mean + (1 - own) * mean[partner]


class Affine(nn.Module):
    """A random affine map per image: translation, rotation, scale and shear with learned means and spreads (HARD-Affine).

    Every quantity is ``range * tanh(mu + sigma * eps)``; the ranges bound what can be learned.

    Args:
        shift: largest translation, as a share of the image. rotate: largest rotation, degrees. scale: largest log2 of the
            enlargement (0.5 lies between 0.71 and 1.41). shear: largest shear, degrees.
        start: initial sigma. padding: what lies outside the image.
    """

    NAMES = ("shift_x", "shift_y", "rotate", "scale", "shear")

    def __init__(self, *, shift: float = 0.3, rotate: float = 45.0, scale: float = 0.5, shear: float = 15.0, start: float = 0.1,
                 padding: str = "zeros") -> None:  # fmt: skip
        super().__init__()
        if not (0 <= shift <= 1 and 0 <= rotate <= 180 and scale >= 0 and 0 <= shear < 90):
            raise InterfuseError("param.value", f"shift {shift}, rotate {rotate}, scale {scale} or shear {shear} leaves the image",
                                 fix="shift <= 1 image, rotate <= 180 degrees, shear < 90 degrees.")  # fmt: skip
        self.padding = padding
        self.mu = nn.Parameter(torch.zeros(5))
        self.sigma = nn.Parameter(torch.full((5,), start))
        self.register_buffer("limits", torch.tensor([shift, shift, math.radians(rotate), scale * math.log(2), math.radians(shear)]))  # fmt: skip

    def quantities(self, eps: Tensor) -> Tensor:
        """Shares of the image, radians, log scale and radians [B, 5] for noise [B, 5]."""
        return self.get_buffer("limits") * torch.tanh(self.mu + self.sigma * eps)

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        q = self.quantities(noise_like(x, (len(x), 5), generator))
        return affine(x, q, padding=self.padding)

    def diagnostics(self) -> dict[str, float]:
        """Mean and spread (to first order) of every quantity: shares of the image, degrees, log2 of the scale, degrees."""
        units = (1.0, 1.0, 180 / math.pi, 1 / math.log(2), 180 / math.pi)
        limits = self.get_buffer("limits").tolist()
        mu, sigma = self.mu.detach().tolist(), self.sigma.detach().abs().tolist()
        found: dict[str, float] = {}
        for name, limit, unit, m, s in zip(self.NAMES, limits, units, mu, sigma, strict=True):
            found[f"{name}_mean"], found[f"{name}_spread"] = limit * unit * math.tanh(m), limit * unit * math.tanh(s)
        return found


def affine(x: Tensor, quantities: Tensor, *, padding: str = "zeros") -> Tensor:
    """Moves every image [B, C, H, W] by its own quantities [B, 5]: shift x and y (shares), rotation (radians), log scale, shear.

    Bilinear, ``align_corners=False``; the rotation is rigid on images that are no square, too.
    """
    dx, dy, angle, log_scale, shear = quantities.unbind(dim=1)
    cos, sin, grow = angle.cos(), angle.sin(), torch.exp(-log_scale)
    aspect = x.shape[2] / x.shape[3]  # height over width: a step in y is as many pixels as aspect steps in x
    # output place -> input place: rotate back, shear back, scale back
    rows = [
        torch.stack([grow * (cos + sin * shear.tan()), grow * sin * aspect, -2 * dx], dim=1),
        torch.stack([grow * (-sin + cos * shear.tan()) / aspect, grow * cos, -2 * dy], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


class Mix(nn.Module):
    """A learned mixture of fixed operations (HARD-Mix): per image their weights are drawn through a Gumbel softmax.

    Args:
        start: initial probability of every operation but the identity, shared equally. temperature: of the softmax.
    """

    def __init__(self, *, start: float = 0.5, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature
        others = max(start, 1e-6) / (len(OPERATIONS) - 1)
        odds = [math.log(max(1 - start, 1e-6))] + [math.log(others)] * (len(OPERATIONS) - 1)
        self.log_odds = nn.Parameter(torch.tensor(odds))

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand((len(x), len(OPERATIONS)), generator=generator, device=generator.device).to(x)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-6, 1 - 1e-6)))
        weights = torch.softmax((self.log_odds + gumbel) / self.temperature, dim=1)
        changed = torch.stack([operation(x, generator) for operation in OPERATIONS.values()], dim=1)  # [B, M, C, H, W]
        return (weights[:, :, None, None, None] * changed).sum(dim=1)

    def diagnostics(self) -> dict[str, float]:
        """The probability of every operation."""
        return dict(zip(OPERATIONS, torch.softmax(self.log_odds.detach(), dim=0).tolist(), strict=True))


def _moved(**by: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    row = [by.get("x", 0.0), by.get("y", 0.0), math.radians(by.get("degrees", 0.0)), by.get("scale", 0.0), 0.0]
    return lambda x, generator: affine(x, torch.tensor([row], device=x.device, dtype=x.dtype).expand(len(x), -1))


def _another(x: Tensor, generator: torch.Generator) -> Tensor:
    """Three tenths of another image of the batch."""
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    return 0.7 * x + 0.3 * x[order]


#: the operations of :class:`Mix`; the first leaves the image alone
OPERATIONS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "identity": lambda x, generator: x,
    "left": _moved(x=-0.125), "right": _moved(x=0.125), "up": _moved(y=-0.125), "down": _moved(y=0.125),
    "turn_left": _moved(degrees=15), "turn_right": _moved(degrees=-15), "larger": _moved(scale=0.2), "smaller": _moved(scale=-0.2),
    "blur": lambda x, generator: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1),
    "contrast": lambda x, generator: 0.6 * x + 0.4 * x.mean(dim=(1, 2, 3), keepdim=True),
    "noise": lambda x, generator: x + 0.1 * noise_like(x, tuple(x.shape), generator),
    "another": _another,
}  # fmt: skip


class Noise(nn.Module):
    """Additive bounded noise with a learned mean and spread per input number: ``x + limit * tanh(mu + sigma * eps)``.

    Args:
        shape: of one input, without the batch. limit: largest change. start: initial sigma.
    """

    def __init__(self, shape: tuple[int, ...], *, limit: float = 0.3, start: float = 0.1) -> None:
        super().__init__()
        self.limit = limit
        self.mu = nn.Parameter(torch.zeros(shape))
        self.sigma = nn.Parameter(torch.full(shape, start))

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        eps = noise_like(x, tuple(x.shape), generator)
        return x + self.limit * torch.tanh(self.mu + self.sigma * eps)

    def diagnostics(self) -> dict[str, float]:
        """Mean over the input of the size of the mean change and of the spread, in the input's units."""
        mean, spread = (self.limit * torch.tanh(p.detach().abs()).mean() for p in (self.mu, self.sigma))
        return {"mean": float(mean), "spread": float(spread)}


class Words(nn.Module):
    """How strongly each token of a text is heard: its word vector is multiplied by ``1 + limit * tanh(mu + sigma * eps)``, with a learned
    mean and spread per word of the vocabulary. Factors, not vectors, are what two networks with tables of their own have in common.

    Args:
        vocabulary: how many words. limit: largest change of a factor. start: initial sigma.
    """

    def __init__(self, vocabulary: int, *, limit: float = 0.3, start: float = 0.1) -> None:
        super().__init__()
        self.limit = limit
        self.mu = nn.Parameter(torch.zeros(vocabulary))
        self.sigma = nn.Parameter(torch.full((vocabulary,), start))

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Token ids [B, L] -> factors [B, L]."""
        mu, sigma = F.embedding(x, torch.stack([self.mu, self.sigma], dim=1)).unbind(dim=-1)
        return 1 + self.limit * torch.tanh(mu + sigma * noise_like(mu, tuple(x.shape), generator))

    def diagnostics(self) -> dict[str, float]:
        """Mean over the vocabulary of the size of the mean change of a factor and of its spread."""
        mean, spread = (self.limit * torch.tanh(p.detach().abs()).mean() for p in (self.mu, self.sigma))
        return {"mean": float(mean), "spread": float(spread)}


class Latent(nn.Module):
    """Perturbs the latents of a small variational autoencoder (HARD-VAE): ``x + dec(z + limit * tanh(sigma) * eps) - dec(z)``.

    The difference of two decodings is added, so that nothing is lost that the autoencoder cannot draw. :meth:`fit` trains it
    before use; afterwards only the scale per latent is trainable.

    Args:
        shape: of one image. latents: how many. limit: largest spread of a latent (1 is the prior's). start: initial sigma.
    """

    def __init__(
        self, shape: tuple[int, ...], *, latents: int = 8, hidden: int = 64, limit: float = 3.0, start: float = 0.1
    ) -> None:
        super().__init__()
        self.shape, self.limit = shape, limit
        size = math.prod(shape)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, size), nn.Sigmoid())
        self.sigma = nn.Parameter(torch.full((latents,), start))

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        z = self.encoder(x).chunk(2, dim=1)[0].detach()
        eps = noise_like(x, tuple(z.shape), generator)
        moved = self.decoder(z + self.limit * torch.tanh(self.sigma) * eps) - self.decoder(z)
        return x + moved.unflatten(1, self.shape)

    def fit(
        self, images: Tensor, generator: torch.Generator, *, steps: int = 500, batch_size: int = 64, lr: float = 3e-3
    ) -> float:
        """Trains the autoencoder on images [N, C, H, W] in [0, 1] (Kingma & Welling 2014); returns the last step's loss."""
        self.encoder.requires_grad_(True)
        self.decoder.requires_grad_(True)
        optimizer = torch.optim.Adam([*self.encoder.parameters(), *self.decoder.parameters()], lr=lr)
        loss = torch.zeros(())
        for _ in range(steps):
            x = images[torch.randint(len(images), (batch_size,), generator=generator)]
            mean, log_var = self.encoder(x).chunk(2, dim=1)
            z = mean + torch.exp(0.5 * log_var) * noise_like(x, tuple(mean.shape), generator)
            drawn = F.binary_cross_entropy(self.decoder(z), x.flatten(1).clamp(0, 1), reduction="none").sum(dim=1)
            prior = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(dim=1)
            loss = (drawn + prior).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.encoder.requires_grad_(False)
        self.decoder.requires_grad_(False)
        return float(loss.detach())

    def diagnostics(self) -> dict[str, float]:
        """The spread of every latent."""
        spread = self.limit * torch.tanh(self.sigma.detach().abs())
        return {f"latent_{i}": float(s) for i, s in enumerate(spread)}
