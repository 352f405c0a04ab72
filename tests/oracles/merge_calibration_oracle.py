"""Merges that look at the models at work, once more: plain PyTorch in float64, one example at a time, nothing streamed.

``probe`` gives what models do on examples; the rest is NumPy after the papers' equations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.oracles.seen import Array

State = dict[str, Array]


@dataclass
class Probe:
    """Models in float64 and their examples. ``files``: tensor in the files -> parameter.

    Attributes:
        modules: the models, the base last (where there is one). tables: for every model its examples: (inputs, label) where
            inputs are keyword arguments; ``prompts``: the same of the questions alone.
    """

    modules: Sequence[torch.nn.Module]
    tables: Sequence[Sequence[tuple[dict[str, torch.Tensor], int | None]]]
    prompts: Sequence[Sequence[tuple[dict[str, torch.Tensor], int | None]]]
    files: dict[str, str]

    def logits(self, model: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[positions, vocabulary] of a language model's predictions; [1, classes] of a classifier."""
        given = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        out = self.modules[model](**given).logits
        return out[0, :-1] if "input_ids" in inputs else out

    def loss(self, model: int, inputs: dict[str, torch.Tensor], label: int | None) -> torch.Tensor:
        wanted = inputs["input_ids"][0, 1:] if "input_ids" in inputs else torch.tensor([label])
        logs = self.logits(model, inputs).log_softmax(-1)
        return -logs[torch.arange(len(wanted)), wanted].mean()

    def gradients(self, model: int, loss: torch.Tensor) -> State:
        named = dict(self.modules[model].named_parameters())
        parts = torch.autograd.grad(loss, [named[p] for p in self.files.values()], retain_graph=True, allow_unused=True)
        return {
            name: np.zeros(tuple(named[p].shape)) if g is None else g.numpy()
            for (name, p), g in zip(self.files.items(), parts, strict=True)
        }

    def read(self, model: int, inputs: dict[str, torch.Tensor], *, given: bool = True) -> State:
        """What every module reads (or gives), [tokens, channels], by module name."""
        seen: State = {}
        handles = []
        for name, module in self.modules[model].named_modules():
            if given and "weight" not in module._parameters:
                continue

            def note(_: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                values = (*args, *kwargs.values()) if given else output if isinstance(output, tuple) else (output,)
                first = next((v for v in values if isinstance(v, torch.Tensor)), None)
                if first is not None and first.is_floating_point():
                    seen[name] = first.detach().numpy().reshape(-1, first.shape[-1])

            handles.append(module.register_forward_hook(note, with_kwargs=True))
        with torch.no_grad():
            self.logits(model, inputs)
        for handle in handles:
            handle.remove()
        return seen


def open_probe(folders: Sequence[str | Path], auto: str, tables: Any, prompts: Any, files: dict[str, str]) -> Probe:
    import transformers

    modules = [getattr(transformers, auto).from_pretrained(f).double().eval() for f in folders]
    return Probe(modules, tables, prompts, files)


def _mean(models: Sequence[State], name: str) -> Array:
    return sum(m[name] for m in models) / len(models)


def certain_mean(models: Sequence[State], base: State | None, *, probe: Probe, weight: Any, floor: float, labels: str, fisher_norm: str) -> State:  # fmt: skip
    """Matena and Raffel 2022, equations 4 and 6."""
    weights = weight if isinstance(weight, list) else [weight] * len(models)
    curvatures = []
    for i in range(len(models)):
        total = {n: np.zeros(models[0][n].shape) for n in probe.files}
        for inputs, label in probe.tables[i]:
            if labels == "data":
                terms = [(1.0, probe.loss(i, inputs, label))]
            else:
                logs = probe.logits(i, inputs).log_softmax(-1)[0]
                terms = [(float(v.exp()), -v) for v in logs]
            for share, loss in terms:
                for n, g in probe.gradients(i, loss).items():
                    total[n] += share * g**2
        curvatures.append({n: t / len(probe.tables[i]) for n, t in total.items()})
    if fisher_norm == "model":
        for c in curvatures:
            norm = np.sqrt(sum((v**2).sum() for v in c.values()))
            for n in c:
                c[n] = c[n] / norm
    out = {}
    for n in models[0]:
        if n in probe.files:
            f = [w * np.maximum(c[n], floor) for w, c in zip(weights, curvatures, strict=True)]
        else:
            f = [np.full(models[0][n].shape, float(w)) for w in weights]
        out[n] = sum(x * m[n] for x, m in zip(f, models, strict=True)) / sum(f)
    return out


def regression_mean(models: Sequence[State], base: State | None, *, probe: Probe, reduce: float, gram: str, ridge: float) -> State:  # fmt: skip
    """Jin et al. 2023, equation 2 and section 4.2, by ``lstsq`` of the normal equations."""
    grams: list[dict[str, Array]] = []
    for i in range(len(models)):
        mine: dict[str, Array] = {}
        count: dict[str, int] = {}
        for inputs, _ in probe.tables[i]:
            for module, x in probe.read(i, inputs).items():
                mine[module] = mine.get(module, 0) + x.T @ x
                count[module] = count.get(module, 0) + len(x)
        grams.append({m: g / count[m] if gram == "mean" else g for m, g in mine.items()})
    out = {}
    linear = {n: p.removesuffix(".weight") for n, p in probe.files.items() if p.endswith(".weight")}
    kinds = {name: type(m).__name__ for name, m in probe.modules[0].named_modules()}
    for n in models[0]:
        module = linear.get(n, "")
        if kinds.get(module) not in ("Linear", "Conv1D"):
            out[n] = _mean(models, n)
            continue
        flip = kinds[module] == "Linear"
        mean = _mean(models, n)
        mean = mean.T if flip else mean
        left, right = 0.0, 0.0
        for g, m in zip(grams, models, strict=True):
            square = reduce * g[module] + (1 - reduce) * np.diag(np.diag(g[module]))
            left = left + square
            right = right + square @ ((m[n].T if flip else m[n]) - mean)
        left = left + ridge * np.mean(np.diag(left)) * np.eye(len(left))
        found = mean + np.linalg.lstsq(left, right, rcond=1e-12)[0]
        out[n] = found.T if flip else found
    return out


def voted(models: Sequence[State], base: State, *, probe: Probe, penalty: float, fisher: str, domain_text: str, zero_is: str, accept: None = None) -> State:  # fmt: skip
    """Yang et al. 2026, sections 3.2 to 3.4."""
    prior = {n: np.zeros(base[n].shape) for n in probe.files}
    for inputs, label in probe.tables[0]:
        for n, g in probe.gradients(0, probe.loss(0, inputs, label)).items():
            prior[n] += (g * models[0][n] if fisher == "gtheta" else g) ** 2 / len(probe.tables[0])
    votes = {n: np.zeros(base[n].shape) for n in probe.files}
    for inputs, label in (probe.prompts if domain_text == "prompt" else probe.tables)[1]:
        for n, g in probe.gradients(1, probe.loss(1, inputs, label)).items():
            score = g * models[1][n] + penalty * prior[n] * (models[0][n] - models[1][n]) ** 2
            votes[n] += np.where(score <= 0 if zero_is == "merge" else score < 0, 1, -1)
    return {
        n: models[0][n] + (np.where(votes[n] > 0, models[1][n] - b, 0) if n in votes else 0) for n, b in base.items()
    }


def relaxed(models: Sequence[State], base: State, *, probe: Probe, keep: float, weight: Any, normalize: bool, scale: float) -> State:  # fmt: skip
    """Nobari et al. 2025, section 3."""
    weights = np.array(weight if isinstance(weight, list) else [weight] * len(models), dtype=float)
    weights = weights / weights.sum() if normalize else weights
    importance: dict[str, Array] = {}
    for inputs, _ in probe.tables[0]:
        for module, x in probe.read(len(models), inputs).items():
            importance[module] = importance.get(module, 0) + np.abs(x).mean(0)
    kinds = {name: type(m).__name__ for name, m in probe.modules[-1].named_modules()}
    out = {}
    for n, b in base.items():
        change = scale * sum(w * (m[n] - b) for w, m in zip(weights, models, strict=True))
        parameter = probe.files.get(n, "")
        module = parameter.removesuffix(".weight")
        if parameter.endswith(".weight") and (kinds[module] in ("Linear", "Conv1D") or "Norm" in kinds[module]):
            s = importance[module]
            factor = 1 - s / s.max() * (1 - keep)
            change = change * (factor[:, None] if kinds[module] == "Conv1D" else factor)
        out[n] = b + change
    return out


def _block(name: str) -> str:
    found = re.match(r"(.*?\.\d+)\.", name)
    return found[1] if found else name


def sensitive(models: Sequence[State], base: State, *, probe: Probe, temperature: float, scale: float) -> State:
    """Liu et al. 2025 (Sens-Merging), sections 3.1 to 3.3."""
    count = len(models)
    blocks = list(dict.fromkeys(_block(n) for n in probe.files))
    alpha = np.zeros((count, len(blocks)))
    tau = np.zeros(count)
    for i in range(count):
        for inputs, label in probe.tables[i]:
            for n, g in probe.gradients(i, probe.loss(i, inputs, label)).items():
                alpha[i, blocks.index(_block(n))] += np.abs(g * models[i][n]).sum() / len(probe.tables[i])
        alpha[i] /= np.linalg.norm(alpha[i])
        for j in range(count):
            if j != i:
                for inputs, _ in probe.tables[j]:
                    gap = (probe.logits(i, inputs) - probe.logits(j, inputs)).detach().numpy()
                    tau[i] += np.linalg.norm(gap, axis=-1).mean() / len(probe.tables[j])
    tau /= tau.sum()
    powers = np.exp(alpha * tau[:, None] / temperature)
    sigma = powers / powers.sum(0)
    out = {}
    for n, b in base.items():
        k = blocks.index(_block(n)) if _block(n) in blocks else None
        share = sigma[:, k] if k is not None else np.full(count, 1 / count)
        out[n] = b + scale * count * sum(s * (m[n] - b) for s, m in zip(share, models, strict=True))
    return out


def informed(models: Sequence[State], base: State, *, probe: Probe, scale: float) -> State:
    """Yao et al. 2025 as its card has it: t = 1 - sigmoid(mean Gaussian information of the channels)."""
    prefix = next(n for n, m in probe.modules[0].named_modules() if isinstance(m, torch.nn.ModuleList))
    count = len(probe.modules[0].get_submodule(prefix))
    out = {n: b.copy() for n, b in base.items()}
    for i, model in enumerate(models):
        weights = []
        for layer in range(count):
            name = f"{prefix}.{layer}"
            pairs = [
                (probe.read(len(models), x, given=False)[name], probe.read(i, x, given=False)[name])
                for x, _ in probe.tables[i]
            ]
            one, two = (np.concatenate([p[k] for p in pairs]) for k in (0, 1))
            rho = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, two.T, strict=True)])
            bits = np.minimum(-0.5 * np.log1p(-np.minimum(rho**2, 1)), 10.0)
            weights.append(1 - 1 / (1 + np.exp(-bits.mean())))
        for n, b in base.items():
            found = re.match(re.escape(prefix) + r"\.(\d+)\.", probe.files.get(n, ""))
            out[n] += scale * (weights[int(found[1])] if found else np.mean(weights)) * (model[n] - b)
    return out
