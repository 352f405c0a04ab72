"""Dual-head distillation: the teacher's logits go to an auxiliary head that is thrown away (Yang et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.losses import binary_kl, log_cosh_logits, mse_logits
from interfuse.kit.taps import PENULTIMATE, as_vector

#: parameters of an auxiliary head that are refused unless ``allow_large`` is set
LARGE = 50_000_000
CE, AUX = "ce", "aux"


@method()
@dataclass(frozen=True)
class DHKD(Hooks):
    """``ce * CE(main head) + weight * BinaryKL-Norm(auxiliary head, teacher)``; where the two gradients disagree on the
    backbone, the teacher's loses its part against the labels' (sections 4.1 to 4.3). The main head never sees the teacher."""

    tau: Annotated[float, Field(gt=0, description="temperature of the loss on logits")] = 2.0
    weight: Annotated[float, Field(ge=0, description="weight of the teacher (1 on CIFAR-100, 0.1 on ImageNet)")] = 1.0
    ce: Annotated[float, Field(gt=0, description="weight of the cross entropy with the labels")] = 1.0
    head: Annotated[
        Literal["mlp", "linear", "main"],
        Field(description="auxiliary head; 'main' uses the main head for both losses, which the paper warns of"),
    ] = "mlp"
    head_width: Annotated[int, Field(ge=1, description="hidden width of the mlp head")] = 200
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout of the mlp head")] = 0.1
    aux_loss: Annotated[
        Literal["bkl-norm", "bkl", "mse"], Field(description="loss of the auxiliary head on raw logits")
    ] = "bkl-norm"
    align: Annotated[
        Literal["backbone", "all", "features", "none"],
        Field(
            description="which gradients are aligned: those with respect to the features that both heads read, the backbone's (a second "
            "backward pass), all together as the reference does, or none as in the reference's ImageNet script"
        ),
    ] = "features"
    center: Annotated[bool, Field(description="take the mean over classes off the teacher's logits")] = False
    allow_large: Annotated[bool, Field(description="allow an auxiliary head of more than 50 million parameters")] = (
        False
    )

    def needs(self) -> Needs:
        return Needs(
            labels=True,
            student_features=(PENULTIMATE,),
            batch=2 if self.head == "mlp" else 1,
            raw_logits=not self.center,
        )

    def setup(self, run: Run) -> None:
        if self.align != "none" and run.accelerator.num_processes > 1:
            raise InterfuseError("param.value", "gradients can be aligned in one process only", where="align", fix="Use align: none.")  # fmt: skip
        width, classes = run.student_shapes[PENULTIMATE][-1], run.classes
        size = {"linear": width * classes, "mlp": self.head_width * (width + classes), "main": 0}[self.head]
        if size > LARGE and not self.allow_large:
            raise InterfuseError("input.limit", f"the auxiliary head would have {size} parameters", where=run.student_model.name,
                                 fix="Set allow_large: true, or use head: mlp with a small head_width.")  # fmt: skip
        if self.head == "linear":
            run.add("auxiliary", nn.Linear(width, classes))
        elif self.head == "mlp":
            layers = [nn.Linear(width, self.head_width), nn.Dropout(self.dropout), nn.BatchNorm1d(self.head_width), nn.ReLU(),
                      nn.Linear(self.head_width, classes)]  # fmt: skip
            run.add("auxiliary", nn.Sequential(*layers))

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        u, t = views.student, views.teachers[0]
        if "auxiliary" in run.modules:
            taps = run.student_taps
            by_token = taps is not None and taps.by_token  # the main head reads every token, one decides
            h = taps.read if taps is not None and (by_token or views.more) else views.features[PENULTIMATE]
            h = giving_way(h) if self.align == "features" else h
            if u.ndim == 3:  # of a language model, the positions that have a next token
                h = h[:, : u.shape[1]]
                u = run.modules["auxiliary"](h.flatten(0, -2)).unflatten(0, h.shape[:-1])
            else:
                h = as_vector(taps.taken(h) if taps is not None and by_token else h)
                u = run.modules["auxiliary"](h[: len(u)] if views.more else h)
        t = t - t.mean(dim=-1, keepdim=True) if self.center else t
        if self.aux_loss == "bkl-norm":
            loss = log_cosh_logits(u, t, tau=self.tau)  # tau^2 sum_k KL(Bern(1/2) || Bern(sigmoid((u - t)/tau)))
        else:
            loss = binary_kl(u, t, tau=self.tau) if self.aux_loss == "bkl" else mse_logits(u, t)
        return {CE: hard_loss(views), AUX: loss}

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {CE: self.ce, AUX: self.weight}

    def alone(self) -> tuple[str, str]:
        if self.align in ("backbone", "all"):
            return "align takes the gradients of all parameters apart", "Use align: features, or align: none."
        if self.align == "features" and self.head == "main":
            return "on one head align takes the gradients of both losses apart", "Use another head, or align: none."
        return "", ""

    def backward(self, run: Run, loss: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> None:
        if self.align == "none" or (self.align == "features" and self.head != "main"):
            super().backward(run, loss, parts)  # what comes down the auxiliary head gives way by itself
            return
        if self.align == "features":
            self._backward_on_one_head(run, loss, parts)
            return
        # the labels' gradient gathers in .grad as ever, the teacher's beside it until the whole window is there
        found = self._parameters(run)
        labels = {name: p.grad for name, p in found.items()}
        for name, p in found.items():
            p.grad = run.tensors.pop(f"aux/{name}", None)
        run.accelerator.backward(parts[AUX], retain_graph=True)
        for name, p in found.items():
            if p.grad is not None:
                run.tensors[f"aux/{name}"] = p.grad
            p.grad = labels[name]
        run.accelerator.backward(parts[CE])

    def _backward_on_one_head(self, run: Run, loss: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> None:
        """As :func:`giving_way`, where both gradients come down one head: the labels' is found first, so the head is gone through twice."""
        assert run.student_taps is not None
        h = run.student_taps.read
        scale = run.accelerator.scaler.get_scale() if run.accelerator.scaler is not None else 1.0
        (label,) = torch.autograd.grad(parts[CE], h, retain_graph=True)
        handle = h.register_hook(lambda both: turned(both, both - scale * label))  # type: ignore[no-untyped-call]
        run.accelerator.backward(loss)
        handle.remove()

    def before_step(self, run: Run) -> None:
        if self.align in ("none", "features"):
            return
        found = self._parameters(run)
        frozen = _head(run) if self.align == "backbone" else ()
        zeros = {name: torch.zeros_like(p) for name, p in found.items()}
        g0 = {name: p.grad if p.grad is not None else zeros[name] for name, p in found.items()}
        g1 = {name: run.tensors.pop(f"aux/{name}", zeros[name]) for name in found}
        inside = [name for name in found if name not in frozen]
        projected = dict(zip(inside, align([g1[n] for n in inside], [g0[n] for n in inside]), strict=True))
        for name, p in found.items():
            p.grad = g0[name] + projected.get(name, g1[name])

    def _parameters(self, run: Run) -> dict[str, nn.Parameter]:
        modules = {"student": run.bare, **run.modules}
        return {f"{m}/{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}


def _head(run: Run) -> set[str]:
    """The names of both heads' parameters: everything that is not the backbone."""
    assert run.student_taps is not None
    main = run.student_taps.classifier
    names = {f"student/{main}.{n}" for n, _ in run.bare.get_submodule(main).named_parameters()}
    return names | {f"auxiliary/{n}" for m in run.modules.values() for n, _ in m.named_parameters()}


def giving_way(h: torch.Tensor) -> torch.Tensor:
    """``h`` under a name of its own, whose gradient is met on its way down and turned before it goes on below ``h``, where it opposes
    all else that comes down to ``h``: with the method alone that is the labels' gradient, in a composition that of every other term too.

    What is aligned at the features bounds what would be below: the backbone's gradients are these two times one Jacobian (Sener & Koltun
    2018, section 3.3). Both may carry the scale of half precision: turning does not depend on it.
    """
    own = h.view_as(h)
    if not h.requires_grad:  # a frozen backbone
        return own
    seen: list[torch.Tensor] = []
    own.register_hook(seen.append)  # type: ignore[no-untyped-call]
    h.register_hook(lambda both: turned(both, seen.pop()) if seen else both)  # type: ignore[no-untyped-call]
    return own


def turned(both: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The sum of two gradients without the part of the teacher's that opposes the other."""
    label = both - teacher
    (kept,) = align([teacher], [label])
    return both if kept is teacher else label + kept


def align(distil: list[torch.Tensor], label: list[torch.Tensor]) -> list[torch.Tensor]:
    """Section 4.3: ``g1 - <g1, g0> / ||g0||^2 g0`` where <g1, g0> < 0, else g1. Only the teacher's gradient is changed.

    Args:
        distil: g1, one tensor per parameter. label: g0, the same shapes.
    """
    dot = sum(torch.dot(a.flatten(), b.flatten()) for a, b in zip(distil, label, strict=True))
    square = sum(torch.dot(b.flatten(), b.flatten()) for b in label)
    if float(dot) >= 0 or float(square) == 0:
        return distil
    return [a - dot / square * b for a, b in zip(distil, label, strict=True)]
