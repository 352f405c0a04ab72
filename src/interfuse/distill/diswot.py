"""DisWOT (Dong et al. 2023): choose the student that will learn best from a teacher, without training, then distil it."""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.models import TASKS, Model, build, device_of, make_config, size_of
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table
from interfuse.distill import pages
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.architecture_scores import Probe, cka_score, kd_score, probe, relation_score, semantic_score
from interfuse.kit.encode import Encoder, forward
from interfuse.kit.feature_losses import inter_channel_correlation, similarity_preserving
from interfuse.kit.losses import forward_kl
from interfuse.kit.nets import Projector, as_tokens, width_of
from interfuse.kit.search import Candidate, aging_evolution, grid
from interfuse.kit.taps import AUTO
from interfuse.kit.threads import threads_for

#: fields that transformers derives from others and that would contradict a candidate's
DERIVED = ("stage_names", "out_features", "out_indices", "architectures")
#: rows of the ranking that go into the manifest; all are in ranking.csv
TOP = 10


@method()
@dataclass(frozen=True)
class DisWOT(Hooks):
    """Ranks configurations by ``M = M_s + M_r`` at initialisation, trains the best by distillation: ``alpha tau^2 KL +
    (1 - alpha) CE + sp SP + ickd ICKD``; with ``sp`` and ``ickd`` the two similarities are losses as well (DisWOT-dagger).
    """

    space: Annotated[
        dict[str, list[Any]],
        Field(description="fields of the student's configuration, each with the values to choose from"),
    ]
    max_parameters: Annotated[float | None, Field(gt=0, description="largest number of parameters of a student")] = None
    max_flops: Annotated[
        float | None, Field(gt=0, description="largest number of floating point operations per example")
    ] = None
    combine: Annotated[
        Literal["sum", "ranks"],
        Field(description="add the two scores, or their ranks over all candidates (whole grids only)"),
    ] = "sum"
    semantic: Annotated[
        Literal["auto", "channel", "class"],
        Field(
            description="compare classifier gradients by channel (equal widths) or by class (any); auto: as widths allow"
        ),
    ] = "auto"
    zero_rows: Annotated[
        Literal["keep", "skip"], Field(description="classes without gradient: counted or left out")
    ] = "keep"
    init: Annotated[
        Literal["default", "gaussian"], Field(description="initial weights: the architecture's own, or N(0, 1)")
    ] = "default"
    inits: Annotated[int, Field(ge=1, description="initialisations and batches to average over")] = 3
    score_batch: Annotated[int, Field(ge=2, description="examples in a batch that is scored on")] = 64
    exhaustive: Annotated[int, Field(ge=1, description="score every candidate up to this many, evolve beyond")] = 500
    evaluations: Annotated[int, Field(ge=1, description="candidates that an evolution scores at most")] = 1000
    layer: Annotated[str, Field(description="layer whose output are the features; auto: the last block")] = AUTO
    alpha: Annotated[float, Field(ge=0, le=1, description="weight of the teacher when the best student is trained")] = (
        0.9
    )
    tau: Annotated[float, Field(gt=0, description="temperature of that distillation")] = 4.0
    sp: Annotated[float, Field(ge=0, description="weight of the similarity of samples as a loss; published: 3000")] = (
        0.0
    )
    ickd: Annotated[
        float, Field(ge=0, description="weight of the correlation of channels as a loss; published: 2.5")
    ] = 0.0

    def needs(self) -> Needs:
        tapped = (self.layer,) if self.sp or self.ickd else ()
        return Needs(
            labels=True, teachers=(1, 1), student_features=tapped, teacher_features=tapped, batch=2 if tapped else 1
        )

    # -- the search --------------------------------------------------------------------------------------------------

    def choose(self, call: Call) -> tuple[Model, dict[str, Any]]:
        rows = self.rank(call)
        best = rows[0]
        call.ctx.log(f"the best of {len(rows)} students: {best['config']}")
        return _student(call.inputs["student"], best["config"]), {"search": {"candidates": math.prod(map(len, self.space.values())),
                                                                            "scored": len(rows), "ranking": rows}}  # fmt: skip

    def rank(self, call: Call) -> list[dict[str, Any]]:
        """The scored candidates, best first: ``config``, ``score``, ``sd`` over initialisations, ``semantic``, ``relation``,
        ``kd``, ``cka``, ``parameters``, ``flops``.

        Raises:
            InterfuseError: ``param.unknown`` or ``param.value`` for a space that does not fit the student, or a budget that admits
                nothing; ``input.shape`` for fewer than two examples; ``run.failed`` when no candidate gives finite scores.
        """
        template: Model = call.inputs["student"]
        names, sizes = self._check_space(template)
        with threads_for(max(size_of(template), size_of(call.inputs["teacher"][0]))):
            batches = [_Batch(call, self, r) for r in range(self.inits)]
            scored: dict[Candidate, dict[str, Any]] = {}

            def config(candidate: Candidate) -> dict[str, Any]:
                return {name: self.space[name][i] for name, i in zip(names, candidate, strict=True)}

            def allowed(candidate: Candidate) -> bool:
                return (
                    self.max_parameters is None or size_of(_student(template, config(candidate))) <= self.max_parameters
                )

            def score(candidate: Candidate) -> float:
                row = self._score(_student(template, config(candidate)), batches)
                scored[candidate] = {"config": config(candidate), **row}
                return float(row["score"]) if row["finite"] and row["within"] else -math.inf

            if math.prod(sizes) <= self.exhaustive:
                for candidate in filter(allowed, grid(sizes)):
                    score(candidate)
            else:
                aging_evolution(score, allowed, sizes, call.ctx.rng("diswot/evolution"), evaluations=self.evaluations)
        within = [row for row in scored.values() if row["within"]]
        if not within:
            least = min(
                (size_of(_student(template, config(c))) for c in list(grid(sizes))[: self.exhaustive]), default=0
            )
            raise InterfuseError("param.value", f"the budget admits no candidate; the smallest has {least} parameters", where="max_parameters")  # fmt: skip
        rows = [row for row in within if row["finite"]]
        if len(rows) < len(within):
            call.ctx.log(f"{len(within) - len(rows)} candidates gave numbers that are not finite and are left out")
        if not rows:
            raise InterfuseError("run.failed", "no candidate gives finite scores", fix="Use init: default.")
        if self.combine == "ranks":
            for row in rows:
                row["score"] = -float(
                    sum(sum(other[key] > row[key] for other in rows) for key in ("semantic", "relation"))
                )
        rows.sort(key=lambda row: -row["score"])
        return [{k: v for k, v in row.items() if k not in ("finite", "within")} for row in rows]

    def _check_space(self, template: Model) -> tuple[list[str], list[int]]:
        if template.task not in TASKS or not template.config:
            raise InterfuseError("param.value", "the student must be a configuration, whose fields the space replaces", where=template.name,
                                 fix="student: {config: {model_type: resnet, ...}}")  # fmt: skip
        known = sorted(make_config(_student(template, {})).to_dict())
        for name, values in self.space.items():
            if name not in known:
                raise InterfuseError("param.value", f"space: the configuration has no field {name!r}", where="space", fix=did_you_mean(name, known))  # fmt: skip
            if not values:
                raise InterfuseError("param.value", f"space: {name} has no values", where="space")
        if not self.space:
            raise InterfuseError("param.value", "space names no field", where="space")
        return list(self.space), [len(values) for values in self.space.values()]

    def _score(self, student: Model, batches: list[_Batch]) -> dict[str, Any]:
        rows: list[dict[str, float]] = []
        flops, finite, parameters = 0.0, True, 0
        for number, batch in enumerate(batches):
            module = batch.module(student)
            parameters = sum(p.numel() for p in module.parameters())
            if number == 0:
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    batch.forward(student)(module.eval())
                flops = counter.get_total_flops() / len(batch.labels)
            seen = probe(module, batch.forward(student), batch.labels, layer=self.layer)
            finite = finite and seen.finite and batch.teacher.finite
            if not finite:
                break
            rows.append(self.scores(batch.teacher, seen))
        means = {key: float(np.mean([row[key] for row in rows])) for key in (rows[0] if finite else ())}
        sd = float(np.std([row["score"] for row in rows], ddof=1)) if finite and len(rows) > 1 else 0.0
        within = self.max_flops is None or flops <= self.max_flops
        return {**means, "sd": sd, "parameters": parameters, "flops": flops, "finite": finite, "within": within}

    def scores(self, teacher: Probe, student: Probe) -> dict[str, float]:
        """All scores of one untrained student beside one untrained teacher."""
        semantic = semantic_score(teacher.gradient, student.gradient, relation=self.semantic, zero_rows=self.zero_rows)
        relation = relation_score(teacher.features, student.features)
        return {"score": semantic + relation, "semantic": semantic, "relation": relation,
                "kd": kd_score(teacher, student, tau=self.tau), "cka": cka_score(teacher, student)}  # fmt: skip

    # -- the training of the best ------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        if self.ickd:
            student, teacher = list(run.student_shapes.values())[-1], list(run.teacher_shapes[0].values())[-1]
            if width_of(student) != width_of(teacher):  # places may differ: only channels are compared
                wide = (width_of(teacher), *student[1:]) if len(student) == 3 else (*student[:-1], width_of(teacher))
                run.add("widen", Projector(student, wide))

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        terms = {"kd": forward_kl(views.student, views.teachers[0], tau=self.tau)} if self.alpha else {}
        terms |= {"ce": hard_loss(views)} if self.alpha < 1 else {}
        if self.sp or self.ickd:
            student = views.features[list(run.student_shapes)[-1]]
            teacher = views.teacher_features[0][list(run.teacher_shapes[0])[-1]]
            if self.sp:
                terms["sp"] = similarity_preserving(student, teacher)
            if self.ickd:
                student = run.modules["widen"](student) if "widen" in run.modules else student
                terms["ickd"] = inter_channel_correlation(as_tokens(student), as_tokens(teacher))
        return terms

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        return {"kd": self.alpha, "ce": 1 - self.alpha, "sp": self.sp, "ickd": self.ickd}

    def write(self, run: Run, folder: Path) -> None:
        import yaml

        search = run.facts.get("search")
        if search is None:
            return
        rows = search["ranking"]
        with (folder / "ranking.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, [*rows[0]["config"], *(k for k in rows[0] if k != "config")], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows({**row["config"], **{k: v for k, v in row.items() if k != "config"}} for row in rows)
        pages.ranking(folder, rows)
        chosen = {k: v for k, v in run.student_model.config.items() if k not in DERIVED}
        (folder / "student.yaml").write_text(yaml.safe_dump({"config": chosen}, sort_keys=True), encoding="utf-8")
        run.facts["search"] = {**search, "ranking": rows[:TOP]}


class _Batch:
    """One batch of examples and one initialisation of the teacher, for every candidate."""

    def __init__(self, call: Call, settings: DisWOT, number: int) -> None:
        self.settings, self.device = settings, device_of(call.ctx)
        self.ctx: Ctx = call.ctx.with_(seed=call.ctx.seed_for(f"diswot/{number}"))
        self.data: Table = call.inputs["data"]
        if len(self.data) < 2:
            raise InterfuseError("input.shape", "scoring needs at least two examples", where=self.data.name)
        size = min(settings.score_batch, len(self.data))
        self.rows = np.sort(self.ctx.rng("rows").choice(len(self.data), size, replace=False))
        self.labels = torch.from_numpy(self.data.labels()[self.rows]).to(self.device)
        teacher: Model = call.inputs["teacher"][0]
        self.teacher = probe(self.module(teacher), self.forward(teacher), self.labels)

    def module(self, model: Model) -> nn.Module:
        """The model at a fresh initialisation."""
        if model.task in TASKS:
            found = build(_student(model, {}), self.ctx, train=True)
        else:
            found = copy.deepcopy(build(model, self.ctx))
            with seeded(self.ctx.seed_for("reset")):
                for child in found.modules():
                    reset = getattr(child, "reset_parameters", None)
                    if callable(reset):
                        reset()
        if self.settings.init == "gaussian":
            _gaussian(found, self.ctx.seed_for("gaussian"))
        return found.to(self.device).requires_grad_(True)

    def forward(self, model: Model) -> Any:
        inputs = {k: v.to(self.device) for k, v in Encoder(model, self.data).encode(self.rows).items()}
        return lambda module: forward(module, model, inputs)


def _gaussian(module: nn.Module, seed: int) -> None:
    """N(0, 1) weights, biases 0, normalisations 1 and 0, as in the reference."""
    with seeded(seed), torch.no_grad():
        for child in module.modules():
            for name, value in child.named_parameters(recurse=False):
                if name == "bias":
                    value.zero_()
                elif value.ndim > 1:
                    value.normal_()
                else:
                    value.fill_(1.0)


def _student(template: Model, config: Mapping[str, Any]) -> Model:
    """The template with some fields of its configuration replaced, to be initialised anew."""
    merged = {**{k: v for k, v in template.config.items() if k not in DERIVED}, **config}
    return dataclasses.replace(template, config=merged, path=None, module=None, key="")
