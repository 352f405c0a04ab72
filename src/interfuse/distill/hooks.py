"""What a distillation method may say about training: hooks, all optional, whose defaults are plain supervised training.

A method is a frozen dataclass whose fields are its hyper-parameters and which overrides the hooks it needs. It holds no
state of its own: modules go into :meth:`Run.add`, so that they are saved, restored and put on the device with the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from interfuse.kit.losses import cross_entropy
from interfuse.kit.nets import is_auto, pair_layers, unpadded
from interfuse.kit.sparse_losses import token_cross_entropy

if TYPE_CHECKING:
    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Call
    from interfuse.data.models import Model
    from interfuse.data.tables import Table
    from interfuse.distill.room import DistillSettings
    from interfuse.kit.encode import Encoder
    from interfuse.kit.taps import Taps

Tensor = torch.Tensor


@dataclass(frozen=True)
class Needs:
    """What a method needs, checked before anything is loaded.

    Attributes:
        labels: a label per example. teachers: least and most number of teachers.
        live: the teacher must run on every batch (augmented inputs), so stored predictions will not do.
        student_features, teacher_features: layer patterns (see ``kit.taps``).
        validation: the method can use examples held apart (the room's input ``validation``).
        batch: fewest examples a batch must hold (relations between samples, batch normalisation); an epoch's last batch is
            left out when it holds fewer.
        own_labels: the loss looks at each sample's own label, so that labels must not be mixed. mixes: the method mixes them.
        raw_logits: the teacher's logits are used as they are, so that probabilities will not do.
        tokens: for causal language models only. The method prepares what the teachers say itself (see ``token_targets``), so that
            they may read other tokens; they run on batches only where ``live`` says so.
        answers: the method brings the answers itself, so that prompts alone are examples.
    """

    labels: bool = False
    teachers: tuple[int, int] = (1, 1)
    live: bool = False
    student_features: tuple[str, ...] = ()
    teacher_features: tuple[str, ...] = ()
    validation: bool = False
    batch: int = 1
    own_labels: bool = False
    mixes: bool = False
    raw_logits: bool = False
    tokens: bool = False
    answers: bool = False


@dataclass
class Batch:
    """One batch on the device.

    Attributes:
        positions: rows of the table, int64 [B] (NumPy).
        student: inputs of the student. teachers: inputs of each teacher (empty where predictions are stored).
        labels: int64 [B], or [B, L-1] for a causal language model, or None. soft: class probabilities [B, K] that replace
            labels after mixing, or None.
    """

    positions: NDArray[np.int64]
    student: dict[str, Tensor]
    teachers: list[dict[str, Tensor]]
    labels: Tensor | None
    soft: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Views:
    """What the models said about a batch: logits [B, K] or [B, L, V], features by layer name, and the batch itself.

    ``more`` is the number of further examples that the student saw in the same pass, behind these (changed ones, see ``hard``).
    """

    batch: Batch
    student: Tensor
    teachers: list[Tensor]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_features: list[Mapping[str, Tensor]] = field(default_factory=list)
    more: int = 0

    @property
    def labels(self) -> Tensor | None:
        return self.batch.labels

    def pair(self, student: str, teacher: str) -> tuple[Tensor, Tensor]:
        """What a layer of the student and one of the first teacher gave, zero where a text is only padding."""
        theirs = self.batch.teachers[0] if self.batch.teachers else {}
        return unpadded(self.features[student], self.batch.student), unpadded(self.teacher_features[0][teacher], theirs)


@dataclass
class Run:
    """One training: models, data and extra modules, handed to every hook.

    ``student_shapes`` and ``teacher_shapes`` (one table per teacher) hold the shape of every tapped layer without the batch,
    (C, H, W), (N, D) or (D,), as the dry batch showed it: they are there in :meth:`Hooks.setup`. ``tensors`` is state of the method
    that is saved with checkpoints; ``held`` is what it can make again in :meth:`Hooks.setup`.
    """

    ctx: Ctx
    settings: DistillSettings
    student: torch.nn.Module
    student_model: Model
    teachers: list[torch.nn.Module]
    teacher_models: list[Model]
    data: Table
    encoder: Encoder
    teacher_encoders: list[Encoder]
    labels: Tensor | None
    device: torch.device
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    lr_scales: dict[str, float] = field(default_factory=dict)
    exported: list[str] = field(default_factory=list)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)
    stored: list[Tensor] | None = None
    validation: Table | None = None
    student_taps: Taps | None = None
    teacher_taps: list[Taps] = field(default_factory=list)
    student_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    teacher_shapes: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    accelerator: Any = None
    epoch: int = 0
    step: int = 0
    steps: int = 0
    outputs: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The number of classes (or tokens of the vocabulary): as the configuration or, after it, the dry batch tells."""
        return int(self.student_model.labels or self.outputs)

    @property
    def bare(self) -> Any:
        """The student without what several processes wrap it in (looking for wrappers costs time in every step)."""
        if self.accelerator.num_processes == 1:
            return self.student
        return self.accelerator.unwrap_model(self.student)

    def layer_pairs(self, student_layers: Sequence[str], teacher_layers: Sequence[str]) -> list[tuple[str, str]]:
        """The tapped layers of student and first teacher, paired in order (see :func:`interfuse.kit.nets.pair_layers`).

        Args:
            student_layers, teacher_layers: the patterns they were tapped by, the same as in :class:`Needs`.
        """
        auto = is_auto(student_layers, teacher_layers)
        return pair_layers(list(self.student_shapes), list(self.teacher_shapes[0]), auto=auto)

    def add(self, name: str, module: torch.nn.Module, *, train: bool = True, lr_scale: float = 1.0) -> torch.nn.Module:
        """Registers an extra module of the method: moved to the device, saved in checkpoints, and trained with the student
        at ``lr_scale`` times its learning rate unless ``train`` is False (then it is frozen, or the method's own to train)."""
        self.modules[name] = module.to(self.device)
        if train:
            self.lr_scales[name] = lr_scale
        return self.modules[name]

    def frozen_copy(self, module: torch.nn.Module) -> torch.nn.Module:
        """A copy in evaluation mode that takes no gradient."""
        return copy.deepcopy(module).eval().requires_grad_(False)

    def taught(self, teacher: int = 0) -> torch.Tensor:
        """A teacher's logits of every row [N, K], on the CPU: the stored ones, or those of a pass over the data by its own encoder."""
        from interfuse.kit.encode import predict

        if self.stored is not None:
            return self.stored[teacher]
        module, encoder = self.teachers[teacher], self.teacher_encoders[teacher]
        return torch.from_numpy(
            predict(self.teacher_models[teacher], self.data, self.ctx, module=module, encoder=encoder)
        )

    def generator(self, name: str) -> torch.Generator:
        """A generator for a named purpose; include epoch or step in the name where it must differ between them."""
        from interfuse.data.seeding import generator

        return generator(self.ctx, name, "cpu")


#: hooks that decide for the whole training, and what a method with one of its own does
WHOLE = {
    "choose": "it chooses the student that is trained",
    "select": "it chooses the examples of every epoch",
    "backward": "it takes the gradients of the whole loss apart",
    "fit": "it trains in a loop of its own",
    "export": "it saves something else than the trained student",
    "shell": "it saves something else than the trained student",
}


class Hooks:
    """The interface of a distillation method."""

    def needs(self) -> Needs:
        """What must be there before work starts."""
        return Needs(labels=True, teachers=(0, 0))

    def check(self, call: Call) -> None:
        """Refuses inputs that the method cannot use, by a coded error, before anything is loaded."""

    def alone(self) -> tuple[str, str]:
        """Why the method cannot be one of several whose losses are added up, and what to do instead; two empty texts where it can."""
        for hook, why in WHOLE.items():
            if getattr(type(self), hook) is not getattr(Hooks, hook):
                return why, "Use it alone."
        return ("it prepares what teachers say of tokens itself", "Use it alone.") if self.needs().tokens else ("", "")

    def calls(self, call: Call) -> int:
        """How many calls of an endpoint the work will need at most."""
        return 0

    def choose(self, call: Call) -> tuple[Model, dict[str, Any]]:
        """The student to train, before anything is built, and facts for the manifest. Default: the given one."""
        return call.inputs["student"], {}

    def setup(self, run: Run) -> None:
        """Adds extra modules, once, before the optimiser is made."""

    def scan(self, run: Run) -> None:
        """One look at data and models before training: class means, statistics."""

    def select(self, run: Run, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of this epoch, from all rows in this epoch's random order."""
        return order

    def batch(self, run: Run, batch: Batch) -> Batch:
        """Augments inputs and targets."""
        return batch

    def views(self, run: Run, batch: Batch) -> Views:
        """The forward passes."""
        from interfuse.distill.room import default_views

        return default_views(run, batch)

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        """The loss terms by name, one number per sample [B] or token [B, L]."""
        return {"ce": hard_loss(views)}

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        """The weight of each term: a number, or one per sample without gradient. Missing names weigh 1."""
        return {}

    def backward(self, run: Run, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Accumulates gradients of ``loss``, the weighted sum of ``parts`` (scalars by term name)."""
        run.accelerator.backward(loss)

    def before_step(self, run: Run) -> None:
        """Runs when the gradients of a whole window are there, before they are clipped and the optimiser steps."""

    def after_step(self, run: Run) -> None:
        """Runs after each optimiser step: slow weights, outer steps, second phases."""

    def on_epoch_end(self, run: Run) -> None:
        """Runs after each epoch."""

    def fit(self, run: Run) -> list[dict[str, Any]] | None:
        """Trains in another library's loop and returns a row per epoch; None leaves it to the room's own."""
        return None

    def export(self, run: Run) -> torch.nn.Module:
        """The module to save."""
        return run.student

    def shell(self, call: Call, path: Path) -> torch.nn.Module | None:
        """For students that are plain modules: the module whose weights the folder holds. Default: the given one."""
        module: torch.nn.Module | None = call.inputs["student"].module
        return module

    def write(self, run: Run, folder: Path) -> None:
        """Writes what else the method made beside the saved student: trained partners, tables, pictures."""


def hard_loss(views: Views, smoothing: float = 0.0) -> Tensor:
    """Cross entropy with the labels (or with mixed soft labels), per sample [B] or token [B, L]."""
    target = views.batch.soft if views.batch.soft is not None else views.labels
    assert target is not None, "needs().labels guarantees labels"
    if views.student.ndim == 3 and not target.is_floating_point() and not smoothing:
        return token_cross_entropy(views.student, target)  # a vocabulary is large: a few positions at a time
    return cross_entropy(views.student, target, label_smoothing=smoothing)


def per_position(value: Tensor, views: Views) -> Tensor:
    """A loss per sample [B] repeated over the positions of its text [B, L] where labels are per token, so that it weighs the same."""
    labels = views.labels
    if labels is None or labels.ndim == 1:
        return value
    return value.unsqueeze(1).expand(labels.shape)
