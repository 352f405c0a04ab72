"""Clients that teach each other by predictions: the card's numbers, limits, splits, refusals, and whole rounds."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import apply
from interfuse.distill import room as engine
from interfuse.kit.federated import average_weights, class_estimates, dirichlet_split, effective_weights, fuse
from tests.conformance.fixtures import VISION
from tests.conformance.workspace import quiet_threads
from tests.unit.test_distill_lm import started

Q = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with quiet_threads():
        yield


def test_worked_weights() -> None:
    ten = effective_weights(Q, beta=10)
    np.testing.assert_allclose(ten[0], [0.566630, 0.433365, 0.000005], atol=1e-6)
    np.testing.assert_allclose(ten[1], [0.427628, 0.572347, 0.000025], atol=1e-6)
    np.testing.assert_allclose(ten[2], [0.000008, 0.000016, 0.999975], atol=1e-6)
    np.testing.assert_allclose(effective_weights(Q, beta=1)[0], [0.437699, 0.426119, 0.136181], atol=1e-6)


def random_predictions(clients: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"c{n}": rng.dirichlet(np.ones(3) * 0.5, size=20) for n in range(clients)}


def test_limits_and_symmetries() -> None:
    said = random_predictions()
    stacked = np.stack(list(said.values()))
    plain = fuse(said, beta=0)
    np.testing.assert_allclose(plain.targets, np.broadcast_to(stacked.mean(0), stacked.shape), rtol=1e-12)
    alone = fuse(said, beta=1e6)
    np.testing.assert_allclose(alone.targets, stacked, rtol=1e-9)
    some = fuse(said, beta=10)
    np.testing.assert_allclose(some.weights.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(some.targets.sum(-1), 1, rtol=1e-9)
    order = ["c2", "c0", "c3", "c1"]
    again = fuse({n: said[n] for n in order}, beta=10)
    place = [list(said).index(n) for n in order]
    np.testing.assert_allclose(again.weights, some.weights[np.ix_(place, place)], rtol=1e-12)
    twins = fuse({"a": said["c0"], "b": said["c0"], "c": said["c1"]}, beta=10).weights
    np.testing.assert_allclose(twins[0], twins[1], rtol=1e-12)
    assert twins[0, 0] == twins[0, 1]
    same = fuse({"a": said["c0"], "b": said["c0"][::-1]}, beta=10)
    np.testing.assert_allclose(same.weights, 0.5, rtol=1e-9)
    near = fuse(said, beta=10, neighbours=2).weights
    assert ((near > 0).sum(1) == 2).all()
    assert (np.diag(near) > 0).all()
    inverse = fuse(said, beta=10, weighting="inverse").weights
    assert (inverse.argmax(1) == np.arange(4)).all()


def test_estimates_and_priors() -> None:
    stacked = np.stack(list(random_predictions().values()))
    soft, hard = class_estimates(stacked), class_estimates(stacked, "hard")
    np.testing.assert_allclose(soft, stacked.mean(1), atol=1e-7)
    np.testing.assert_allclose(hard[0], np.bincount(stacked[0].argmax(1), minlength=3) / 20, atol=1e-7)
    corrected = fuse(random_predictions(), correct_prior=True).estimates
    np.testing.assert_allclose(
        corrected, (soft / soft.mean(0)) / (soft / soft.mean(0)).sum(1, keepdims=True), rtol=1e-6
    )
    for distance in ("symmetric-kl", "js"):
        assert np.isfinite(effective_weights(soft, beta=5, distance=distance)).all()


def test_refused_predictions() -> None:
    said = random_predictions()
    for change, code in (
        ({}, None),
        ({"c1": said["c1"][:5]}, "input.shape"),
        ({"c1": np.ones((20, 4)) / 4}, "input.shape"),
        ({"c1": said["c1"] * 2}, "param.value"),
        ({"c1": said["c1"] * np.nan}, "input.nan"),
    ):
        if code is None:
            continue
        with pytest.raises(InterfuseError) as caught:
            fuse({**said, **change})
        assert caught.value.code == code
    for given in ({"beta": -1.0}, {"neighbours": 0}):
        with pytest.raises(InterfuseError, match=r"param\.value"):
            fuse(said, **given)
    with pytest.raises(InterfuseError, match=r"input\.empty"):
        fuse({})


@pytest.mark.parametrize("size", [None, 20])
def test_splits_are_disjoint_and_skewed_by_alpha(size: int | None) -> None:
    labels = np.repeat(np.arange(10), 60)

    def skew(alpha: float) -> float:
        parts = dirichlet_split(labels, 8, alpha, np.random.default_rng(0), size=size)
        everything = np.concatenate(parts)
        assert len(np.unique(everything)) == len(everything)
        assert len(everything) == (600 if size is None else 160)
        return float(np.mean([(np.bincount(labels[p], minlength=10) / max(len(p), 1)).max() for p in parts]))

    assert skew(0.1) > skew(1.0) > skew(100.0)
    with pytest.raises(InterfuseError, match=r"param\.value"):
        dirichlet_split(labels, 3, 0.0, np.random.default_rng(0))
    with pytest.raises(InterfuseError, match=r"input\.empty"):
        dirichlet_split(labels, 3, 1.0, np.random.default_rng(0), size=900)


def test_average_is_weighted_by_examples() -> None:
    states = [{"w": np.array([1.0, 2.0])}, {"w": np.array([5.0, 6.0])}]
    np.testing.assert_allclose(average_weights(states, [3, 1])["w"], [2.0, 3.0])
    with pytest.raises(InterfuseError, match=r"input\.empty"):
        average_weights(states, [0, 0])


def points(count: int = 90) -> Dataset:
    rng = np.random.default_rng(1)
    labels = np.arange(count) % 3
    rows = rng.normal(size=(count, 4)) + 2.0 * np.eye(4)[labels]
    return Dataset.from_dict({"features": rows.tolist(), "label": [str(v) for v in labels]})


class Layers(torch.nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(width)
            self.body = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def made(out: Path, **given: Any) -> list[dict[str, str]]:
    settings = {
        "student": Layers(),
        "data": points(),
        "clients": 3,
        "epochs": 4,
        "batch_size": 16,
        "lr": 1e-2,
        "seed": 2,
    }
    apply("distill/knfu", out=out, **{**settings, **given})
    with (out / "rounds.csv").open() as file:
        return list(csv.DictReader(file))


def test_sharpness_zero_is_the_mean_of_all(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a", beta=0.0), made(tmp_path / "b", aggregate="fedmd")
    assert one == two
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    sharp, local = made(tmp_path / "c", beta=1e9), made(tmp_path / "d", aggregate="local")
    near = np.mean(
        [abs(float(a["accuracy_own"]) - float(b["accuracy_own"])) for a, b in zip(sharp, local, strict=True)]
    )
    assert near < 0.1, "taught by itself alone, a client hardly changes"


def test_weights_that_are_averaged_are_one_model(tmp_path: Path) -> None:
    made(tmp_path / "avg", aggregate="fedavg")
    import safetensors.torch

    one = safetensors.torch.load_file(tmp_path / "avg" / "model.safetensors")
    two = safetensors.torch.load_file(tmp_path / "avg" / "clients" / "1" / "model.safetensors")
    assert all(torch.equal(one[n], two[n]) for n in one)
    made(tmp_path / "df", aggregate="feddf")
    with pytest.raises(InterfuseError, match=r"input\.shape"):
        made(tmp_path / "no", aggregate="fedavg", student={"config": VISION["vit"]}, teacher=[{"config": VISION["resnet"]}],
             data={"data": "sklearn:digits", "classes": list("012345")})  # fmt: skip


def test_clients_do_not_feel_each_other() -> None:
    """A client's gradient in local training is that of training alone on its rows."""
    run, hooks = started("knfu", student=Layers(), data=points(), clients=3, clip=0, batch_size=64, epochs=2)
    rows = np.flatnonzero(run.held["owner"] >= 0)[:40]
    engine._step(run, hooks, [rows], {})
    mine = rows[run.held["owner"][rows] == 1]
    client = run.modules["client_1"]
    found = {n: p.grad.clone() for n, p in client.named_parameters()}
    run2, hooks2 = started("knfu", student=Layers(), data=points(), clients=3, clip=0, batch_size=64, epochs=2)
    engine._step(run2, hooks2, [mine], {})
    for name, parameter in run2.modules["client_1"].named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in run2.modules["client_2"].parameters())


def test_what_is_written_and_refused(tmp_path: Path) -> None:
    rows = made(tmp_path / "a", laplace=0.1, neighbours=2, deploy=1)
    assert len(rows) == 2 * 3
    with (tmp_path / "a" / "weights.csv").open() as file:
        weights = list(csv.DictReader(file))
    assert [sum(float(v) for k, v in row.items() if k.startswith("takes")) for row in weights] == pytest.approx(
        [1.0] * 6, abs=1e-6
    )
    report = json.loads((tmp_path / "a" / "interfuse.json").read_text())["facts"]
    assert report["bytes per client and round"] == 2 * 18 * 3 * 4
    assert sum(report["clients"]["private"]) + sum(report["clients"]["test"]) + 18 == 90
    assert (tmp_path / "a" / "clients" / "0").is_dir()
    assert not (tmp_path / "a" / "clients" / "1").exists()
    for given in ({"epochs": 3}, {"deploy": 3}, {"clients": 40}):
        with pytest.raises(InterfuseError, match=r"param\.value|input\.shape"):
            made(tmp_path / "b", **given)


def test_a_client_without_examples_is_taught_and_named(tmp_path: Path) -> None:
    lines: list[str] = []
    skewed = {"dirichlet": 0.01, "clients": 8, "ctx": Ctx(seed=5, log=lines.append), "seed": None}
    made(tmp_path / "a", **skewed)
    report = json.loads((tmp_path / "a" / "interfuse.json").read_text())["facts"]
    assert report["clients"]["empty"]
    assert any("no examples of its own" in line for line in lines)


def test_clients_of_two_architectures(tmp_path: Path) -> None:
    digits = {"data": "sklearn:digits", "classes": list("012345"), "limit": 120, "labels": list("0123456789")}
    small = [{"config": {**VISION[k], "num_labels": 10}} for k in ("vit", "resnet")]
    made(tmp_path / "a", student=small[0], teacher=[small[1]], data=digits, epochs=2, deploy=1)
    kinds = [
        json.loads((p / "config.json").read_text())["model_type"]
        for p in (tmp_path / "a", tmp_path / "a/clients/0", tmp_path / "a/clients/2")
    ]
    assert kinds == ["resnet", "vit", "vit"]


def test_flower_is_asked_for_by_name() -> None:
    from importlib.util import find_spec

    from interfuse.kit.flower import strategy

    if find_spec("flwr") is not None:
        pytest.skip("flwr is installed")
    with pytest.raises(InterfuseError, match=r"needs\.package") as caught:
        strategy()
    assert "distill/knfu" in caught.value.fix


def test_flower_answers_every_client_with_its_own_targets() -> None:
    flwr = pytest.importorskip("flwr")
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

    from interfuse.kit.flower import strategy

    assert flwr.__version__

    class Client:
        def __init__(self, cid: str) -> None:
            self.cid = cid

    class Manager:
        def __init__(self) -> None:
            self.clients = {f"c{n}": Client(f"c{n}") for n in range(4)}

        def wait_for(self, count: int) -> bool:
            return len(self.clients) >= count

        def all(self) -> dict[str, Client]:
            return self.clients

    said, server, manager = random_predictions(), strategy(beta=10.0), Manager()
    begin = server.initialize_parameters(manager)
    assert all(parameters_to_ndarrays(i.parameters) == [] for _, i in server.configure_fit(1, begin, manager))
    results = [
        (c, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([said[c.cid]]), 1, {})) for c in manager.clients.values()
    ]
    server.aggregate_fit(1, results, [])
    want = fuse(said, beta=10.0)
    for client, given in server.configure_fit(2, begin, manager):
        (array,) = parameters_to_ndarrays(given.parameters)
        np.testing.assert_allclose(array, want.targets[want.clients.index(client.cid)])
    assert server.aggregate_fit(2, [], []) == (None, {})
