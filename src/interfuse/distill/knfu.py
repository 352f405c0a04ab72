"""KnFu: clients with private data teach each other by predictions on shared examples (Seyedmohammadi et al. 2024)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.models import Model, build, save, tokenizer_folder
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views
from interfuse.kit.encode import forward
from interfuse.kit.federated import Distance, Estimate, Fused, Weighting, dirichlet_split, fuse
from interfuse.kit.losses import cross_entropy, forward_kl

Ints = NDArray[np.int64]


@method()
@dataclass(frozen=True)
class KnFu(Hooks):
    """Rounds of local training (CE on private examples) and fine-tuning (KL towards a fused teacher of one's own).

    The table is cut into shared examples, whose labels are not used, and private parts by a Dirichlet mixture of classes, each with
    test examples of its own. Clients take turns among the architectures of ``student`` and ``teacher`` (configurations or models).
    Two epochs are one round: local training, then fine-tuning. What comes out is client ``deploy``; the others lie beside it.
    """

    aggregate: Annotated[
        Literal["knfu", "fedmd", "fedavg", "feddf", "local"],
        Field(
            description="who teaches: effective neighbours, the mean of all predictions, the mean of weights, that mean distilled from the mean of predictions, or nobody"
        ),
    ] = "knfu"
    clients: Annotated[int, Field(ge=2, le=1000, description="number of clients")] = 10
    dirichlet: Annotated[
        float, Field(gt=0, description="concentration of classes per client: 0.1 few classes each, 10 nearly all alike")
    ] = 0.5
    private: Annotated[
        int | None, Field(ge=2, description="training examples of every client; none: whatever its share is")
    ] = None
    transfer: Annotated[
        float, Field(gt=0, lt=1, description="share of the table that all clients see without labels")
    ] = 0.2
    held: Annotated[float, Field(gt=0, lt=1, description="share of a client's examples that it is tested on")] = 0.3
    beta: Annotated[float, Field(ge=0, description="sharpness of the weights; 0 is the mean of all")] = 10.0
    weighting: Annotated[Weighting, Field(description="exp(-beta d), or 1 / (d + 1/beta)")] = "exp"
    distance: Annotated[Distance, Field(description="between estimated distributions of classes")] = "kl"
    estimate: Annotated[Estimate, Field(description="mean of probabilities, or shares of the most likely classes")] = (
        "soft"
    )
    neighbours: Annotated[
        int | None, Field(ge=1, description="only so many nearest clients count, itself included")
    ] = None
    correct_prior: Annotated[
        bool, Field(description="take the shared examples' own mix of classes out of the estimates")
    ] = False
    local_epochs: Annotated[int, Field(ge=1, description="passes over private examples per round")] = 5
    tune_epochs: Annotated[int, Field(ge=1, description="passes over shared examples per round")] = 2
    tau: Annotated[float, Field(gt=0, description="temperature of what is sent")] = 1.0
    laplace: Annotated[
        float,
        Field(
            ge=0, description="scale of Laplace noise on what is sent, for privacy; rows are made distributions again"
        ),
    ] = 0.0
    deploy: Annotated[int, Field(ge=0, description="the client whose model is the result")] = 0

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(0, 100), live=True, batch=2)

    def check(self, call: Call) -> None:
        if call.params["epochs"] % 2:
            raise InterfuseError("param.value", "two epochs are one round, so their number is even", where="epochs")
        if self.deploy >= self.clients:
            raise InterfuseError(
                "param.value", f"there is no client {self.deploy} among {self.clients}", where="deploy"
            )
        student: Model = call.inputs["student"]
        others: list[Model] = call.inputs["teacher"]
        if self.aggregate in ("fedavg", "feddf") and any(dict(t.config) != dict(student.config) for t in others):
            raise InterfuseError("input.shape", f"{self.aggregate} averages weights, so all clients have one architecture", where="teacher",
                                 fix="Leave teacher out, or choose aggregate: knfu or fedmd.")  # fmt: skip
        rows = len(call.inputs["data"])
        shared = round(self.transfer * rows)
        if shared < 1 or rows - shared < 3 * self.clients:
            raise InterfuseError("input.shape", f"{rows} examples are too few for {self.clients} clients and shared ones", where=call.inputs["data"].name,
                                 fix="Give more examples or fewer clients.")  # fmt: skip

    # -- the clients ----------------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        models = [run.student_model, *run.teacher_models]
        encoders = [run.encoder, *run.teacher_encoders]
        run.teachers = []
        run.held["models"] = [models[n % len(models)] for n in range(self.clients)]
        run.held["encoders"] = [encoders[n % len(models)] for n in range(self.clients)]
        run.held["which"] = [n % len(models) for n in range(self.clients)]
        one_start = self.aggregate in ("fedavg", "feddf")
        for n in range(1, self.clients):
            seed = run.ctx.seed if one_start else run.ctx.seed_for(f"client/{n}")
            run.add(
                f"client_{n}", build(run.held["models"][n], run.ctx.with_(seed=seed), train=True).requires_grad_(True)
            )
        self._split(run)

    def _split(self, run: Run) -> None:
        """Shared, private and test rows; ``owner`` [rows] is the client of a private row, else -1."""
        assert run.labels is not None, "needs().labels guarantees labels"
        labels, rng = run.labels.numpy(), run.ctx.rng("clients")
        order = rng.permutation(len(labels))
        count = round(self.transfer * len(labels))
        shared, rest = np.sort(order[:count]), np.sort(order[count:])
        size = None if self.private is None else round(self.private / (1 - self.held))
        parts = dirichlet_split(labels[rest], self.clients, self.dirichlet, rng, size=size)
        owner, tests = np.full(len(labels), -1, dtype=np.int64), []
        for n, part in enumerate(parts):
            rows = rng.permutation(rest[part])
            cut = round(self.held * len(rows)) if self.private is None else max(len(rows) - self.private, 0)
            tests.append(np.sort(rows[:cut]))
            owner[rows[cut:]] = n
        run.held |= {
            "shared": shared,
            "owner": owner,
            "tests": tests,
            "sizes": np.bincount(owner[owner >= 0], minlength=self.clients),
        }
        empty = [n for n in range(self.clients) if not run.held["sizes"][n]]
        for n in empty:
            run.ctx.log(f"client {n} has no examples of its own: it learns from the others only")
        run.facts["clients"] = {
            "private": run.held["sizes"].tolist(),
            "test": [len(t) for t in tests],
            "shared": len(shared),
            "empty": empty,
        }

    def _client(self, run: Run, n: int) -> torch.nn.Module:
        module: torch.nn.Module = run.bare if n == 0 else run.modules[f"client_{n}"]
        return module

    def _says(self, run: Run, n: int, rows: Ints) -> torch.Tensor:
        """A client's logits for rows of the table, [m, K], without gradient and without changing it."""
        module, model, encoder = self._client(run, n), run.held["models"][n], run.held["encoders"][n]
        training, out = module.training, []
        module.eval()
        with torch.no_grad():
            for part in np.array_split(rows, max(1, len(rows) // 256)) if len(rows) else []:
                out.append(forward(module, model, {k: v.to(run.device) for k, v in encoder.encode(part).items()}))
        module.train(training)
        return torch.cat(out) if out else torch.zeros(0, run.classes, device=run.device)

    # -- rounds ---------------------------------------------------------------------------------------------------------

    def select(self, run: Run, order: Ints) -> Ints:
        rng = run.ctx.rng(f"rounds/{run.epoch}")
        if run.epoch % 2 == 0:
            passes = []
            for _ in range(self.local_epochs):
                for n in rng.permutation(self.clients).tolist():
                    passes.append(rng.permutation(np.flatnonzero(run.held["owner"] == n)))
            return np.concatenate(passes)
        if self.aggregate == "local":
            return np.zeros(0, dtype=np.int64)
        self._exchange(run)
        if self.aggregate == "fedavg":
            return np.zeros(0, dtype=np.int64)
        return np.concatenate([rng.permutation(run.held["shared"]) for _ in range(self.tune_epochs)])

    def _exchange(self, run: Run) -> None:
        """Knowledge goes to the server, and fused knowledge (or the mean of the weights) comes back."""
        sent = {}
        for n in range(self.clients):
            probs = (self._says(run, n, run.held["shared"]).double() / self.tau).softmax(-1).cpu().numpy()
            if self.laplace:
                noisy = np.maximum(
                    probs + run.ctx.rng(f"noise/{run.epoch}/{n}").laplace(0, self.laplace, probs.shape), 1e-6
                )
                probs = noisy / noisy.sum(axis=-1, keepdims=True)
            sent[f"client {n}"] = probs
        beta = self.beta if self.aggregate == "knfu" else 0.0
        fused: Fused = fuse(sent, beta=beta, weighting=self.weighting, distance=self.distance, estimate=self.estimate,
                            neighbours=self.neighbours if self.aggregate == "knfu" else None, correct_prior=self.correct_prior)  # fmt: skip
        run.tensors["fused"] = torch.from_numpy(fused.targets).float()
        run.tensors[f"weights_{run.epoch // 2}"] = torch.from_numpy(fused.weights)
        if self.aggregate in ("fedavg", "feddf"):
            self._average(run)

    def _average(self, run: Run) -> None:
        states = [self._client(run, n).state_dict() for n in range(self.clients)]
        sizes = torch.tensor(run.held["sizes"], dtype=torch.float64)
        shares = (sizes / sizes.sum()).tolist()
        mean = {
            name: sum(
                (s[name].double() * w for s, w in zip(states, shares, strict=True)), torch.zeros(1, dtype=torch.float64)
            ).to(value.dtype)
            if value.is_floating_point()
            else value
            for name, value in states[0].items()
        }
        for n in range(self.clients):
            self._client(run, n).load_state_dict({k: v.reshape(states[n][k].shape) for k, v in mean.items()})

    def views(self, run: Run, batch: Batch) -> Views:
        inputs = [batch.student, *batch.teachers]
        which, clients = run.held["which"], range(self.clients)
        if run.epoch % 2 == 0:
            owner = torch.from_numpy(run.held["owner"][batch.positions])
            kind = next(self._client(run, 0).parameters()).dtype
            out = torch.zeros(len(owner), run.classes, device=run.device, dtype=kind)
            for n in clients:
                rows = (owner == n).nonzero().squeeze(1)
                if len(rows) > 1 or (len(rows) == 1 and not _normalises(self._client(run, n))):
                    said = forward(
                        self._client(run, n), run.held["models"][n], {k: v[rows] for k, v in inputs[which[n]].items()}
                    )
                    out = out.index_put((rows.to(run.device),), said.to(kind))
            batch.extra["owner"] = owner.to(run.device)
            return Views(batch, out, [])
        tuned = [0] if self.aggregate == "feddf" else clients
        each = [forward(self._client(run, n), run.held["models"][n], inputs[which[n]]) for n in tuned]
        place = torch.from_numpy(np.searchsorted(run.held["shared"], batch.positions))
        batch.extra["fused"] = run.tensors["fused"][list(tuned)][:, place].to(run.device)
        return Views(batch, each[0], each)

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        none = views.student.new_zeros(len(views.student))
        if "owner" in views.batch.extra:
            assert views.labels is not None, "needs().labels guarantees labels"
            return {"local": cross_entropy(views.student, views.labels), "tune": none}
        fused = views.batch.extra["fused"]
        each = [forward_kl(z, p.to(z.dtype), targets="probs") for z, p in zip(views.teachers, fused, strict=True)]
        return {"local": none, "tune": torch.stack(each).sum(0)}

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        owner = views.batch.extra.get("owner")
        if owner is None:
            return {}
        count = torch.bincount(owner, minlength=self.clients)[
            owner
        ]  # every client's loss is the mean over its own rows
        return {"local": len(owner) / count}

    def before_step(self, run: Run) -> None:
        """Each client's gradient is clipped by itself, so that clients do not feel each other."""
        if run.settings.clip:
            for n in range(self.clients):
                torch.nn.utils.clip_grad_norm_(self._client(run, n).parameters(), run.settings.clip / self.clients**0.5)

    def on_epoch_end(self, run: Run) -> None:
        if run.epoch % 2:
            return
        if self.aggregate == "feddf":
            state = self._client(run, 0).state_dict()
            for n in range(1, self.clients):
                self._client(run, n).load_state_dict(state)
        assert run.labels is not None, "needs().labels guarantees labels"
        every, own, whole = np.concatenate(run.held["tests"]), [], []
        for n in range(self.clients):
            right = (self._says(run, n, every).argmax(-1).cpu() == run.labels[torch.from_numpy(every)]).numpy()
            mine = np.isin(every, run.held["tests"][n])
            own.append(right[mine].mean() if mine.any() else np.nan)
            whole.append(right.mean() if len(right) else np.nan)
        run.tensors[f"own_{run.epoch // 2 - 1}"] = torch.tensor(own, dtype=torch.float64)
        run.tensors[f"whole_{run.epoch // 2 - 1}"] = torch.tensor(whole, dtype=torch.float64)
        run.facts["alma"] = round(float(np.nanmean(own)), 6) if np.isfinite(own).any() else None
        run.facts["accuracy on all clients' tests"] = (
            round(float(np.nanmean(whole)), 6) if np.isfinite(whole).any() else None
        )
        classes = run.tensors["fused"].shape[-1] if "fused" in run.tensors else 0
        run.facts["bytes per client and round"] = 2 * len(run.held["shared"]) * classes * 4

    # -- what comes out -------------------------------------------------------------------------------------------------

    def export(self, run: Run) -> torch.nn.Module:
        return self._client(run, self.deploy)

    def choose(self, call: Call) -> tuple[Model, dict[str, Any]]:
        models = [call.inputs["student"], *call.inputs["teacher"]]
        return call.inputs["student"], {"deployed": models[self.deploy % len(models)].name}

    def write(self, run: Run, folder: Path) -> None:
        rounds = run.settings.epochs // 2
        with (folder / "rounds.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["round", "client", "private", "accuracy_own", "accuracy_all"])
            for r in range(rounds):
                own, whole = run.tensors[f"own_{r}"].tolist(), run.tensors[f"whole_{r}"].tolist()
                for n in range(self.clients):
                    writer.writerow([r + 1, n, run.held["sizes"][n], round(own[n], 6), round(whole[n], 6)])
        with (folder / "weights.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["round", "client", *(f"takes_from_{k}" for k in range(self.clients))])
            for r in range(rounds):
                for n, row in enumerate(run.tensors[f"weights_{r}"].tolist() if f"weights_{r}" in run.tensors else []):
                    writer.writerow([r + 1, n, *(round(v, 9) for v in row)])
        for n in range(self.clients):
            if n != self.deploy:
                place = folder / "clients" / str(n)
                place.mkdir(parents=True)
                save(
                    self._client(run, n).cpu(),
                    place,
                    tokenizer_from=tokenizer_folder(run.held["models"][n]),
                    processor=run.held["models"][n].processor,
                )


def _normalises(module: torch.nn.Module) -> bool:
    return any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in module.modules())
