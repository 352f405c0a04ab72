"""KD3: learn from a teacher whose data is gone, on a pool of other examples chosen anew each epoch (Tang et al. 2023)."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.composed import Composed, Transfer, compose, pooled
from interfuse.data.seeding import seeded
from interfuse.distill import pages
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views
from interfuse.kit.augmentors import mix_distribution, mix_words
from interfuse.kit.encode import forward, words_changed
from interfuse.kit.losses import forward_kl
from interfuse.kit.nets import as_map, grid_of, resize, width_of
from interfuse.kit.taps import AUTO, PENULTIMATE, as_vector, classifier_name

if TYPE_CHECKING:
    from interfuse.core.rooms import Call

SPEC = "composed.json"


@method()
@dataclass(frozen=True)
class KD3(Hooks):
    """``mean w_i (F_s - F_t)^2 + contrast * (NTX(e_s, e_s~) + NTX(e_t, e_t~))`` with ``w_i = sigmoid(||z_s - z_t||)`` on the
    images whose confidence passes their class's threshold; the student ends in the teacher's own classifier (section 3)."""

    contrast: Annotated[float, Field(ge=0, description="weight of the contrast between plain and perturbed images")] = (
        0.001
    )
    temperature: Annotated[float, Field(gt=0, description="temperature of the contrast")] = 0.3
    width: Annotated[int, Field(ge=1, description="width of the embeddings that are contrasted")] = 128
    beta: Annotated[
        float, Field(gt=0, description="both parameters of the Beta distribution of MixDistribution's share")
    ] = 0.1
    drop: Annotated[
        float, Field(ge=0, lt=1, description="share of numbers set to 0 instead, where the data are features")
    ] = 0.1
    classifier: Annotated[
        Literal["share", "own"],
        Field(description="the teacher's classifier, frozen; or one of the student's own, trained by KL"),
    ] = "share"
    tau: Annotated[float, Field(gt=0, description="temperature of that KL")] = 4.0
    selection: Annotated[
        Literal["dynamic", "none"], Field(description="choose images before an epoch, or take all")
    ] = "dynamic"
    select_every: Annotated[int, Field(ge=1, description="epochs between two choices")] = 1
    p_cutoff: Annotated[float, Field(gt=0, lt=1, description="confidence asked of the most frequent pseudo class")] = (
        0.95
    )
    min_per_class: Annotated[
        int, Field(ge=0, description="most confident images of a pseudo class that are kept anyway")
    ] = 0
    student_layer: Annotated[
        str, Field(description="layer of the student, penultimate, or auto: its last block's map")
    ] = AUTO
    teacher_layer: Annotated[
        str, Field(description="layer of the teacher, penultimate, or auto: its last block's map")
    ] = AUTO

    def needs(self) -> Needs:
        return Needs(live=True, batch=2, student_features=tuple(dict.fromkeys((self.student_layer, PENULTIMATE))),
                     teacher_features=tuple(dict.fromkeys((self.teacher_layer, PENULTIMATE))))  # fmt: skip

    def alone(self) -> tuple[str, str]:
        return "", ""  # in a composition its choice is the whole's, and so are its logits and the model it saves

    # -- before training -------------------------------------------------------------------------------------------

    def check(self, call: Call) -> None:
        student = call.inputs["student"]
        if student.task not in ("image-classification", "text-classification", "module"):
            raise InterfuseError("input.type", f"kd3 ends in the classifier of a whole example, the student is for {student.task}", where=student.name,
                                 fix="Use lm-kd for next tokens.")  # fmt: skip
        for side, layer in (("student_layer", self.student_layer), ("teacher_layer", self.teacher_layer)):
            if student.task == "text-classification" and layer not in (AUTO, PENULTIMATE):
                raise InterfuseError("param.value", "of texts, vectors before the classifiers are matched, and no other layer", where=side,
                                     fix="Leave it out.")  # fmt: skip

    def setup(self, run: Run) -> None:
        if run.labels is not None:
            run.ctx.log("the labels of the pool are not used")
        ours, theirs = self._layers(run)
        assert run.student_taps is not None
        if run.student_taps.by_token:
            raise InterfuseError("needs.capability", "the student's classifier reads every token, the transfer block one vector per text",
                                 where=run.student_model.name, fix="Use a student whose classifier reads one vector, such as BERT, or fitnets.")  # fmt: skip
        teacher = run.teachers[0].get_submodule(run.teacher_taps[0].classifier)
        assert isinstance(teacher, nn.Linear)
        target = run.teacher_taps[0].features[theirs]
        spec: dict[str, Any] = {"rectify": bool((target >= 0).all())}
        shape, goal = run.student_shapes[ours], run.teacher_shapes[0][theirs]
        if theirs == PENULTIMATE:
            spec |= {"in_width": shape[-1], "out_width": goal[-1], "size": None}
        else:
            (leading, *here), (_, *there) = grid_of(shape) or (0, 1, 1), grid_of(goal) or (0, 1, 1)
            size = [min(a, b) for a, b in zip(here, there, strict=True)]
            spec |= {"in_width": width_of(shape), "out_width": width_of(goal), "size": size, "leading": leading}
        run.facts |= {"student_layer": ours, "teacher_layer": theirs, "transfer": spec}
        run.add("transfer", Transfer(**spec))
        head = run.frozen_copy(teacher) if self.classifier == "share" else nn.Linear(spec["out_width"], run.classes)
        run.add("classifier", head, train=self.classifier == "own")
        if self.contrast > 0:
            run.add("student_embedding", nn.Linear(spec["out_width"], self.width))
            run.add("teacher_embedding", nn.Linear(teacher.in_features, self.width))

    def _layers(self, run: Run) -> tuple[str, str]:
        """A map of each side if the teacher's classifier reads the mean of its map; else the vectors before the classifiers.

        Raises:
            InterfuseError: ``input.shape`` when layers that were named do not fit.
        """
        if run.data.kind == "text":
            return PENULTIMATE, PENULTIMATE
        found = run.teacher_taps[0].features
        ours = _last_map(run.student_shapes, self.student_layer)
        theirs = _last_map(run.teacher_shapes[0], self.teacher_layer)
        reads = theirs == PENULTIMATE or _is_mean(found[theirs], found[PENULTIMATE])
        if ours != PENULTIMATE and theirs != PENULTIMATE and reads:
            return ours, theirs
        named = {ours, theirs} - {PENULTIMATE} if AUTO not in (self.student_layer, self.teacher_layer) else {}
        if named:
            raise InterfuseError("input.shape", "the teacher's classifier must read the mean of its map, and both layers be maps",
                                 where=", ".join(sorted(named)), fix="Use penultimate for both layers.")  # fmt: skip
        return PENULTIMATE, PENULTIMATE

    def scan(self, run: Run) -> None:
        """The teacher's logits of the pool [N, K]: they never change, so one pass serves every choice."""
        if self.selection == "dynamic":
            run.tensors["teacher_logits"] = run.taught()
            if "selection" not in run.tensors:
                run.tensors["selection"] = torch.zeros(run.settings.epochs, 2 + 2 * run.classes)

    # -- the choice ------------------------------------------------------------------------------------------------

    def select(self, run: Run, order: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.selection == "none":
            return order
        if run.epoch % self.select_every == 0 or "kept" not in run.tensors:
            self._choose(run)
        kept = run.tensors["kept"].numpy()
        # the learning rate falls over the steps that will be made, as far as this epoch tells
        per_epoch = -(-int(kept.sum()) // (run.settings.batch_size * run.settings.accumulate))
        run.steps = run.step + per_epoch * (run.settings.epochs - run.epoch)
        chosen: NDArray[np.int64] = order[kept[order]]
        return chosen

    def _choose(self, run: Run) -> None:
        share = teacher_share(run.epoch + 1, run.settings.epochs)
        mixed = share * run.tensors["teacher_logits"] + (1 - share) * (self._student_logits(run) if share < 1 else 0.0)
        kept, counts, thresholds = choose(mixed, self.p_cutoff, self.min_per_class)
        if int(kept.sum()) < 2:
            table = ", ".join(
                f"{c}: {n} examples, above {t:.3f}" for c, (n, t) in enumerate(zip(counts, thresholds, strict=True))
            )
            raise InterfuseError("run.failed", f"{int(kept.sum())} examples pass their class's threshold in epoch {run.epoch + 1}: {table}",
                                 where=run.data.name, fix="Lower p_cutoff, or set min_per_class.")  # fmt: skip
        if int((counts > 0).sum()) == 1:
            run.ctx.log(f"epoch {run.epoch + 1}: every example is taken for class {int(counts.argmax())}")
        run.tensors |= {"kept": kept, "pseudo": mixed.argmax(dim=1)}
        per_class = torch.bincount(mixed.argmax(dim=1)[kept], minlength=run.classes)
        run.tensors["selection"][run.epoch] = torch.cat([torch.tensor([kept.sum(), share]), per_class, thresholds])

    @torch.no_grad()
    def _student_logits(self, run: Run) -> torch.Tensor:
        """z_s of every image of the pool in evaluation mode [N, K], batch by batch."""
        modules = [run.student, run.modules["transfer"], run.modules["classifier"]]
        training = [m.training for m in modules]
        for m in modules:
            m.eval()
        rows = []
        for _, batch in run.encoder.batches(np.arange(len(run.data)), run.settings.batch_size):
            rows.append(self._student(run, {k: v.to(run.device) for k, v in batch.items()})[0].float().cpu())
        for m, was in zip(modules, training, strict=True):
            m.train(was)
        return torch.cat(rows)

    # -- training --------------------------------------------------------------------------------------------------

    def _student(self, run: Run, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, K] through the shared classifier, and transferred features."""
        forward(run.student, run.student_model, inputs)
        assert run.student_taps is not None
        transfer, head = run.modules["transfer"], run.modules["classifier"]
        feature = run.student_taps.features[run.facts["student_layer"]]
        feature = as_vector(feature) if run.facts["transfer"]["size"] is None else feature
        moved = transfer(feature.to(next(transfer.parameters()).dtype))
        return head(pooled(moved)), moved

    @torch.no_grad()
    def _teacher(self, run: Run, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, features at the student's size, and the vectors that the classifier reads."""
        logits = forward(run.teachers[0], run.teacher_models[0], inputs)
        found, size = run.teacher_taps[0].features, run.facts["transfer"]["size"]
        target = found[run.facts["teacher_layer"]]
        target = as_vector(target) if size is None else resize(as_map(target), (size[0], size[1]))
        return logits, target, as_vector(found[PENULTIMATE])

    def views(self, run: Run, batch: Batch) -> Views:
        z_s, ours = self._student(run, batch.student)
        z_t, theirs, vector = self._teacher(run, batch.teachers[0])
        assert run.student_taps is not None
        # layers of the unchanged examples stay, for others in a composition
        features, teacher = {**run.student_taps.features, "features": ours}, {**run.teacher_taps[0].features, "features": theirs}  # fmt: skip
        if self.contrast > 0:
            rng = run.ctx.rng(f"perturb/{run.epoch}/{run.step}/{batch.positions[0]}")
            count = len(batch.positions)
            share = torch.from_numpy(rng.beta(self.beta, self.beta, count).astype(np.float32)).to(run.device)
            partner = torch.from_numpy(rng.permutation(count)).to(run.device)
            seed = int(rng.integers(2**62))
            with self._perturbed(run.bare, batch.student, share, partner, seed) as other:
                features |= {"vector": pooled(ours), "perturbed": pooled(self._student(run, other)[1])}
            with self._perturbed(run.teachers[0], batch.teachers[0], share, partner, seed) as other:
                teacher |= {"vector": vector, "perturbed": self._teacher(run, other)[2]}
        return Views(batch, z_s, [z_t], features, [teacher])

    @contextlib.contextmanager
    def _perturbed(
        self, module: nn.Module, inputs: dict[str, torch.Tensor], share: torch.Tensor, partner: torch.Tensor, seed: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """What a network is to read in the block, so that it sees the perturbed examples."""
        mask = inputs.get("attention_mask")
        name, x = next(iter(inputs.items()))
        if mask is not None and name == "input_ids":
            with words_changed(module, x, lambda words: mix_words(words, mask, share, partner)):
                yield inputs
        elif mask is not None:  # words mixed by another part of a composition
            yield {**inputs, name: mix_words(x, mask, share, partner)}
        elif x.ndim == 4:
            yield {name: mix_distribution(x, share, partner)}
        else:
            keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) >= self.drop
            yield {name: v * keep.to(v.device) for name, v in inputs.items()}

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        ours, theirs = views.features, views.teacher_features[0]
        distance = (views.student - views.teachers[0]).norm(dim=-1).detach()
        weight = torch.sigmoid(distance)  # in (0.5, 1)
        terms = {"features": weight * (ours["features"] - theirs["features"]).square().flatten(1).mean(dim=1)}
        if self.classifier == "own":
            terms["kd"] = forward_kl(views.student, views.teachers[0], tau=self.tau)
        if self.contrast > 0:
            sides = [(ours, run.modules["student_embedding"]), (theirs, run.modules["teacher_embedding"])]
            terms["contrast"] = sum(
                (nt_xent(e(f["vector"]), e(f["perturbed"]), self.temperature) for f, e in sides), distance * 0
            )
        return terms

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"contrast": self.contrast}

    # -- the result ------------------------------------------------------------------------------------------------

    def export(self, run: Run) -> nn.Module:
        """Backbone, transfer block and classifier: the backbone's own head has learned nothing."""
        student = run.bare
        transfer, head, layer = run.modules["transfer"], run.modules["classifier"], _saved_layer(run)
        assert isinstance(head, nn.Linear)
        if run.student_model.task == "module":
            return Composed(student, layer, transfer, head)
        with seeded(0):  # every weight is filled in
            texts = run.student_model.task == "text-classification"
            return compose(student, layer, run.facts["transfer"], transfer, head, run.classes, texts=texts)

    def shell(self, call: Call, path: Path) -> nn.Module | None:
        student: nn.Module | None = call.inputs["student"].module
        if student is None or not (path / SPEC).is_file():
            return student
        spec = json.loads((path / SPEC).read_text())
        with seeded(0):
            head = nn.Linear(spec["transfer"]["out_width"], spec["classes"], bias=spec["bias"])
            return Composed(student, spec["layer"], Transfer(**spec["transfer"]), head)

    def write(self, run: Run, folder: Path) -> None:
        if run.student_model.task == "module":
            spec = {"layer": _saved_layer(run), "transfer": run.facts["transfer"], "classes": run.classes,
                    "bias": run.modules["classifier"].bias is not None}  # fmt: skip
            (folder / SPEC).write_text(json.dumps(spec, sort_keys=True), encoding="utf-8")
        if self.selection == "none":
            return
        self._sheet(run, folder)
        names = [*(f"kept_{c}" for c in range(run.classes)), *(f"threshold_{c}" for c in range(run.classes))]
        with (folder / "selection.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["epoch", "kept", "teacher_share", *names])
            for epoch, row in enumerate(run.tensors["selection"].tolist(), start=1):
                if row[0]:
                    counts, rest = row[2 : 2 + run.classes], row[2 + run.classes :]
                    writer.writerow(
                        [epoch, int(row[0]), round(row[1], 6), *map(int, counts), *(round(v, 6) for v in rest)]
                    )

    def _sheet(self, run: Run, folder: Path) -> None:
        """The first images of the last choice, by the class they are taken for, and how many every epoch kept."""
        images: dict[str, tuple[list[str], NDArray[np.float32]]] = {}
        ids, kept, pseudo = run.data.ids(), run.tensors["kept"].numpy(), run.tensors["pseudo"].numpy()
        for c in range(run.classes):
            rows = np.flatnonzero(kept & (pseudo == c))[: pages.SHOWN]
            shown = (
                next(iter(run.encoder.encode(rows).values())).numpy()
                if len(rows) and run.data.kind == "image"
                else np.zeros((0, 1, 1, 1), np.float32)
            )
            images[run.data.classes[c] if c < len(run.data.classes) else f"class {c}"] = ([ids[r] for r in rows], shown)
        log = [(epoch, int(row[0])) for epoch, row in enumerate(run.tensors["selection"].tolist(), start=1) if row[0]]
        pages.selected(folder, images, log, len(run.data))


# -- the mathematics -------------------------------------------------------------------------------------------------


def teacher_share(epoch: int, epochs: int) -> float:
    """a_e, the teacher's share of the mixed logits in epoch e = 1, 2, ...: ``1 - exp(-5 ((e + 1)/160 - 1)^2)`` below e = 120, then
    0, for the reference's 240 epochs; for other lengths the axis is stretched. In a training of one or two epochs the first, before
    which the student has learned nothing, is the teacher's alone."""
    e = epoch * 240 / epochs
    if epoch == 1 and epochs <= 2:
        return 1.0
    return 1 - math.exp(-5 * ((e + 1) / 160 - 1) ** 2) if e < 120 else 0.0


def choose(logits: torch.Tensor, cutoff: float, least: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which images are kept [N] bool, how many are taken for each class [K], and the classes' thresholds [K].

    Kept are those whose confidence is above ``cutoff * r / (2 - r)``, r the size of their pseudo class over the largest one,
    and the ``least`` most confident ones of every pseudo class.

    Args:
        logits: mixed logits of the pool [N, K].
    """
    confidence, pseudo = logits.softmax(dim=1).max(dim=1)
    counts = torch.bincount(pseudo, minlength=logits.shape[1])
    ratio = counts / counts.max()
    thresholds = cutoff * ratio / (2 - ratio)
    kept = confidence > thresholds[pseudo]
    for c in range(logits.shape[1] if least else 0):
        rows = torch.nonzero(pseudo == c).squeeze(1)
        kept[rows[confidence[rows].argsort(descending=True, stable=True)[:least]]] = True
    return kept, counts, thresholds


def nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Normalised cross entropy over the 2B vectors of two views (SimCLR): [B, D] twice -> [B], the mean over both anchors."""
    e = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (e @ e.T / temperature).fill_diagonal_(-torch.inf)
    positive = torch.arange(len(e), device=e.device).roll(len(a))
    return F.cross_entropy(similarity, positive, reduction="none").reshape(2, -1).mean(dim=0)


def _saved_layer(run: Run) -> str:
    """The student's layer as a composed model names it."""
    assert run.student_taps is not None
    layer: str = run.facts["student_layer"]
    main = run.student_taps.classifier
    return f"{layer}:{main}" if layer == PENULTIMATE and main != classifier_name(run.bare) else layer


def _last_map(shapes: dict[str, tuple[int, ...]], wanted: str) -> str:
    maps = (
        [n for n, s in shapes.items() if n != PENULTIMATE and grid_of(s) is not None] if wanted != PENULTIMATE else []
    )
    return maps[-1] if maps else PENULTIMATE


def _is_mean(feature: torch.Tensor, vector: torch.Tensor) -> bool:
    mean = as_map(feature).mean(dim=(2, 3))
    return mean.shape == vector.shape and bool(torch.allclose(mean, vector, atol=1e-4, rtol=1e-4))
