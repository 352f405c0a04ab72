"""Every merge method in its limit cases, and the numbers worked by hand on the cards of those that look at models at work."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load, read_params
from interfuse.core.rooms import load_room, prepare
from interfuse.data.weights import Weights
from interfuse.kit.counter_random import tensor_key, uniform
from interfuse.merge.room import Part, Whole
from interfuse.merge.unwritten import Unwritten
from tests.conformance.cases import CASES
from tests.conformance.checks import find_oracle

CASES_OF = {c.slug: c for c in CASES if c.room == "merge"}
SHAPES = {"w": (14, 10), "b": (10,)}


def run(slug, models, base=None, *, name="w", statistics=(), found=None, sources=None, **given):
    """One tensor merged by a method alone, without files. ``models``: tensors."""
    method = load(f"merge/{slug}")
    own = {n: p.default for n, p in read_params(method.target).items()} | given
    models = [torch.as_tensor(m, dtype=torch.float32) for m in models]
    base = None if base is None else torch.as_tensor(base, dtype=torch.float32)
    labels, sources = [f"model {i}" for i in range(len(models))], sources or [(i, name) for i in range(len(models))]
    below = "" if base is None else name
    flats = [Weights.from_state_dict({name: m}).source(name) for m in models]
    under = None if base is None else Weights.from_state_dict({name: base}).source(name)
    shape = tuple(models[0].shape)
    facts = None
    if "prepare" in method.traits:
        facts = method.traits["prepare"](Whole(name, shape, flats, under, 0, labels, sources, found, below), **own)
    given_here = [m.clone() for m in (*models, *([] if base is None else [base]))]
    if method.traits.get("arrays"):
        given_here = [m.numpy() for m in given_here]
    part = Part(name, shape, 0, given_here[: len(models)], None if base is None else given_here[-1], facts, 0, labels,
                sources, [torch.as_tensor(s, dtype=torch.float32) for s in statistics], found, below)  # fmt: skip
    return torch.as_tensor(method.target(part, **own)).reshape(shape)


def draw(model, name):
    shape = SHAPES[name]
    return uniform(tensor_key(0, f"model {model}", name), 0, math.prod(shape)).numpy().reshape(shape)


def states(count, step, seed=3):
    """A base and variants of it, float32 tensors by name."""
    g = torch.Generator().manual_seed(seed)
    base = {n: 0.2 * torch.randn(s, generator=g) for n, s in SHAPES.items()}
    models = [{n: base[n] + step * torch.randn(s, generator=g) for n, s in SHAPES.items()} for _ in range(count)]
    return base, models


PLAIN = [s for s in CASES_OF if "calibrate" not in load(f"merge/{s}").traits]
#: parameters under which a method must return one source, or sources that are all the same, unchanged
FAITHFUL = {
    "ties": {"density": 1.0}, "dare-linear": {"density": 1.0, "weight": 1.0}, "dare-ties": {"density": 1.0}, "della": {"density": 1.0, "epsilon": 0.0},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0, "weight": 1.0}, "sce": {"select_topk": 1.0}, "twin": {"density": 1.0}, "passthrough": {"scale": 1.0},
    "task-arithmetic": {"weight": 1.0, "scale": 1.0}, "lore": {"mu": 0.0}, "ram": {"epsilon": 0.0, "r": 0.0},
}  # fmt: skip


def counts(slug):
    least, most = load(f"merge/{slug}").traits.get("models", (1, 1000))
    return least, min(most, 3)


def parameters(slug, count):
    """The case's parameters, lists cut to the number of models."""
    given = {k: v for k, v in CASES_OF[slug].given.items() if k not in ("models", "base", "calibration")}
    return {k: v[:count] if isinstance(v, list) else v for k, v in given.items()}


def takes_base(slug):
    return CASES_OF[slug].given.get("base", True)


def by_oracle(slug, models, base, **own):
    method = load(f"merge/{slug}")
    full = {n: p.default for n, p in read_params(method.target).items()} | own
    if method.traits.get("random"):
        full["draw"] = draw
    arrays = [{n: t.double().numpy() for n, t in m.items()} for m in models]
    under = {n: t.double().numpy() for n, t in base.items()} if takes_base(slug) else None
    return find_oracle("merge", CASES_OF[slug].oracle)(arrays, under, **full)


@pytest.mark.parametrize("slug", PLAIN)
@pytest.mark.parametrize("step", [1e-5, 1e-2])
def test_steps_of_any_size_give_the_oracles_numbers(slug, step):
    count = counts(slug)[1]
    base, models = states(count, step)
    own = parameters(slug, count)
    said = by_oracle(slug, models, base, **own)
    for name in SHAPES:
        ours = run(slug, [m[name] for m in models], base[name] if takes_base(slug) else None, name=name, **own)
        np.testing.assert_allclose(ours.double().numpy(), said[name], rtol=1e-6, atol=1e-7 if step < 1e-4 else 1e-6)


OWN_OF = {"twin": {"density": 0.4}, "lore": {"combine": "sum", "steps": 4}}


@pytest.mark.parametrize(("slug", "count"), [("iso-c", 2), ("twin", 2), ("tsv", 2), ("lore", 2), ("lore", 4)])
@pytest.mark.parametrize("shape", [(9, 9), (6, 40), (1, 7), (7, 1), (300, 2)])
def test_matrices_of_any_shape_give_the_oracles_numbers(slug, count, shape):
    g = torch.Generator().manual_seed(6)
    base = {"w": 0.2 * torch.randn(shape, generator=g)}
    models = [{"w": base["w"] + 0.1 * torch.randn(shape, generator=g)} for _ in range(count)]
    own = OWN_OF.get(slug, {})
    said = by_oracle(slug, models, base, **own)["w"]
    ours = run(slug, [m["w"] for m in models], base["w"] if takes_base(slug) else None, **own)
    np.testing.assert_allclose(ours.double().numpy(), said, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("slug", ["iso-c", "twin", "tsv", "lore"])
def test_decomposed_matrices_have_the_same_bits_in_any_memory(slug, tmp_path):
    """A long and a wide one, of several blocks each, from a merge of one thread and little memory, from one of three, and from one
    that another merge reads."""
    import interfuse

    def net(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.nn.ModuleList([torch.nn.Linear(60, 12000), torch.nn.Linear(15000, 60)])

    given = {"models": [net(1), net(2)], **({"base": net(3)} if takes_base(slug) else {}), **OWN_OF.get(slug, {})}
    merge = getattr(interfuse.merge, slug.replace("-", "_"))
    one = merge(out=tmp_path / "one", workers=1, max_memory=0.06, **given).path
    two = merge(out=tmp_path / "two", workers=3, **given).path
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    call, threads = prepare(load_room("merge"), load(f"merge/{slug}"), given, Ctx()), torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as in the threads of the merge that reads it
        with Unwritten(call).open() as made:
            for name, stored in load_file(one / "model.safetensors").items():
                assert torch.equal(made.source(name).read(5, stored.numel()), stored.view(-1)[5:])
    finally:
        torch.set_num_threads(threads)


class Watched:
    """A tensor that remembers how much of it was read, at once and in all."""

    def __init__(self, numbers):
        self.flat, self.shape = numbers.reshape(-1), tuple(numbers.shape)
        self.most = self.total = 0

    def read(self, start, stop, out=None):
        self.most, self.total = max(self.most, stop - start), self.total + stop - start
        return self.flat[start:stop].clone() if out is None else out.copy_(self.flat[start:stop])


@pytest.mark.parametrize(("own", "times"), [({"combine": "sum", "steps": 5}, 1), ({}, 0)])
def test_lore_reads_each_matrix_once_piece_by_piece_whatever_the_rounds(own, times):
    """And not at all where the result is the mean of the models anyway."""
    method = load("merge/lore")
    given = {n: p.default for n, p in read_params(method.target).items()} | own
    g = torch.Generator().manual_seed(1)
    first, last = (Watched(torch.randn(60_000, 8, generator=g)) for _ in range(2))
    facts = method.traits["prepare"](Whole("w", (60_000, 8), [first, last], None, 0, ["a", "b"]), **given)
    assert (facts is not None) == bool(times)
    assert first.total == last.total == times * 480_000
    assert first.most <= 1 << 18
    assert method.traits["squares"](2, **given) == 9 * times


@pytest.mark.parametrize("slug", PLAIN)
def test_models_that_learned_nothing_give_the_base(slug):
    count = counts(slug)[1]
    base, _ = states(count, 0.1)
    for name in SHAPES:
        ours = run(slug, [base[name]] * count, base[name] if takes_base(slug) else None, name=name,
                   **{**parameters(slug, count), **FAITHFUL.get(slug, {})})  # fmt: skip
        np.testing.assert_allclose(ours.numpy(), base[name].numpy(), rtol=2e-6, atol=1e-7)


#: methods that mean to change even equal models; each has a test of its own
CHANGES = {"iso-c": "levels the spectrum", "tsv": "turns equal directions apart"}
#: methods that add task vectors up: with weights of 1 / count they give what equal models are
ADDING = ("task-arithmetic", "dare-linear", "breadcrumbs")


@pytest.mark.parametrize("slug", [s for s in PLAIN if s not in CHANGES])
def test_equal_models_give_that_model(slug):
    count = counts(slug)[1]
    base, (model, *_) = states(count, 0.1)
    own = {**parameters(slug, count), **FAITHFUL.get(slug, {}), **({"weight": 1 / count} if slug in ADDING else {})}
    for name in SHAPES:
        ours = run(slug, [model[name]] * count, base[name] if takes_base(slug) else None, name=name, **own)
        np.testing.assert_allclose(ours.numpy(), model[name].numpy(), rtol=5e-6, atol=5e-7)


#: what parameters change beside the case of each method: each is held against the oracle too
OPTIONS = [
    *(("dare-ties", {"rescale": r, "density": [0.5, 0.3, 1.0]}) for r in ("l1", "none")), ("dare-ties", {"rescale": "l1", "normalize": False}),
    *(("dare-linear", {"rescale": r}) for r in ("inverse", "none")), ("dare-linear", {"normalize": True}),
    *(("della", {"rescale": r}) for r in ("l1", "none")), *(("della", {"elect": False, "normalize": n}) for n in (True, False)), ("della", {"normalize": False}),
    ("lore", {"combine": "sum", "steps": 4}), ("lore", {"scale": 0.5, "steps": 4}),
    ("varm", {"statistic": "absolute"}), *(("varm", {"granularity": "element", "statistic": s}) for s in ("square", "absolute")),
    *(("ties", {"rescale": "l1", "density": [0.3, 0.5, 1.0], "normalize": n}) for n in (True, False)),
    *(("breadcrumbs", {"rescale": "l1", "elect": e, "gamma": 0.1, "density": 0.5}) for e in (True, False)),
    ("sce", {"select_scope": "weights", "select_topk": 0.4}), ("sce", {"degenerate": "pivot", "select_topk": 0.3}), ("model-stock", {"filter_wise": True}), ("multislerp", {"normalize": False, "weight": [0.5, 0.3, 0.9]}),
    *((s, {"density": [0.5, 0.0, 0.5]}) for s in ("ties", "dare-ties", "dare-linear", "della", "breadcrumbs")),
    ("dare-ties", {"density": [0.5, 0.0, 0.5], "rescale": "l1"}), ("ties", {"density": [0.5, 0.0, 0.5], "rescale": "l1"}),
]  # fmt: skip


@pytest.mark.parametrize(("slug", "own"), OPTIONS, ids=[f"{s}: {o}" for s, o in OPTIONS])
def test_options_give_the_oracles_numbers(slug, own):
    count = counts(slug)[1]
    base, models = states(count, 0.05)
    if slug == "model-stock":  # changes of one direction, so that the cosine of no row is below 0
        models = [{n: base[n] + 0.05 * torch.ones(s) + 0.3 * (m[n] - base[n]) for n, s in SHAPES.items()} for m in models]  # fmt: skip
    own = {**parameters(slug, count), **own}
    said, plain = by_oracle(slug, models, base, **own), by_oracle(slug, models, base, **parameters(slug, count))
    for name in SHAPES:
        ours = run(slug, [m[name] for m in models], base[name] if takes_base(slug) else None, name=name, **own)
        np.testing.assert_allclose(ours.double().numpy(), said[name], rtol=1e-6, atol=1e-7)
    assert not np.allclose(said["w"], plain["w"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("slug", ["ties", "dare-ties", "dare-linear", "della", "breadcrumbs"])
def test_a_density_of_0_leaves_a_model_out(slug):
    base, models = states(2, 0.1)
    own = {**parameters(slug, 2), "weight": 1.0}
    pair = run(slug, [m["w"] for m in models], base["w"], **{**own, "density": [0.5, 0.0]})
    alone = run(slug, [models[0]["w"]], base["w"], **{**own, "density": 0.5})
    assert pair.equal(alone)
    nothing = run(slug, [m["w"] for m in models], base["w"], **{**own, "density": 0.0})
    assert nothing.equal(base["w"])


def test_the_report_says_what_a_density_is_and_when_nothing_differs(tmp_path):
    """Trim and keep are named both; models that are the same are noted where a selection by variance makes no sense."""
    import interfuse

    for name, module in (("base", 1), ("x", 2)):
        torch.manual_seed(module)
        save_file({"w": torch.randn(6, 4), "b": torch.randn(4)}, _folder(tmp_path / name) / "model.safetensors")
    two = [str(tmp_path / "x")] * 2

    def remarks(method, **own):
        made = getattr(interfuse.merge, method)(
            two, base=str(tmp_path / "base"), out=tmp_path / "out", force=True, **own
        )
        return json.loads((made.path / "merge.json").read_text())["remarks"], load_file(made.path / "model.safetensors")

    assert remarks("ties", density=0.2)[0] == ["density 0.2: of every task vector 0.2 is kept, 0.8 is trimmed"]
    for method in ("dare_ties", "dare_linear", "della", "breadcrumbs"):
        said, _ = remarks(method, density=[0.5, {"gradient": [0.7, 0.7]}])
        assert said == ["density 0.5 to 0.7: of task vectors 0.5 to 0.7 is kept, 0.3 to 0.5 is trimmed"], method
    said, kept = remarks("sce", select_topk=0.5)
    assert len(said) == 1
    assert "all models are the same" in said[0]
    assert "every element is kept" in said[0]
    torch.testing.assert_close(kept["w"], load_file(tmp_path / "x" / "model.safetensors")["w"])
    said, pivot = remarks("sce", select_topk=0.5, degenerate="pivot")
    assert "the result is the base" in said[0]
    assert pivot["w"].equal(load_file(tmp_path / "base" / "model.safetensors")["w"])
    assert remarks("sce", select_topk=1.0)[0] == []


def _folder(path):
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return path


def test_the_angle_of_long_rows_is_that_of_whole_rows():
    """Rows that are cut by the pieces a tensor is read in."""
    g = torch.Generator().manual_seed(4)
    base = {"w": torch.randn(7, 70001, generator=g)}
    models = [{"w": base["w"] + 0.1 * torch.randn(7, 1, generator=g) + 0.1 * torch.randn(7, 70001, generator=g)} for _ in range(3)]  # fmt: skip
    said = by_oracle("model-stock", models, base, filter_wise=True)["w"]
    ours = run("model-stock", [m["w"] for m in models], base["w"], filter_wise=True)
    np.testing.assert_allclose(ours.double().numpy(), said, rtol=1e-6, atol=1e-6)


def test_equal_models_keep_their_leading_directions_under_tsv():
    """Each of two gives the same leading half of its triplets, and what is made orthogonal spreads over the other half: in the
    leading directions the result is the change of one model, as if it had not been added twice."""
    base, (model, *_) = states(2, 0.1)
    change = (run("tsv", [model["w"]] * 2, base["w"], scale=1.0) - base["w"]).double()
    u, s, v = torch.linalg.svd((model["w"] - base["w"]).double(), full_matrices=False)
    half = len(s) // 2
    torch.testing.assert_close(u[:, :half].T @ change @ v[:half].T, torch.diag(s[:half]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(u[:, :half].T @ change @ v[half:].T, torch.zeros(half, half).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("slug", [s for s in PLAIN if counts(s)[0] == 1 and s not in ("iso-c", "model-stock")])
def test_one_model_gives_itself(slug):
    base, (model,) = states(1, 0.1)
    own = {**parameters(slug, 1), **FAITHFUL.get(slug, {})}
    for name in SHAPES:
        ours = run(slug, [model[name]], base[name] if takes_base(slug) else None, name=name, **own)
        np.testing.assert_allclose(ours.numpy(), model[name].numpy(), rtol=5e-6, atol=5e-7)


def test_leveling_one_model_keeps_its_nuclear_norm():
    base, (model,) = states(1, 0.1)
    change = run("iso-c", [model["w"]], base["w"], scale=1.0) - base["w"]
    expected = torch.linalg.matrix_norm(model["w"] - base["w"], "nuc")
    assert float(torch.linalg.matrix_norm(change, "nuc")) == pytest.approx(float(expected), rel=1e-5)
    assert float(torch.linalg.svdvals(change).std()) < 1e-5


@pytest.mark.parametrize(
    "slug", [s for s in PLAIN if not load(f"merge/{s}").traits.get("ordered") and counts(s)[1] > 1]
)
def test_the_order_of_models_does_not_matter(slug):
    """With their labels and weights, models may come in any order (the engine sorts them; here the method itself)."""
    if load(f"merge/{slug}").traits.get("random"):
        pytest.skip("masks belong to labels, which the engine carries along: see the test of whole folders")
    count = counts(slug)[1]
    base, models = states(count, 0.1)
    own = parameters(slug, count)
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in own.items()}
    under = base["w"] if takes_base(slug) else None
    one = run(slug, [m["w"] for m in models], under, **own)
    two = run(slug, [m["w"] for m in models[::-1]], under, **turned)
    np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ numbers worked by hand


def test_fisher_by_hand():
    """Two models, one sure of the first weight, the other of the second; the third nobody knows anything about."""
    merged = run(
        "fisher", [[1.0, 1.0, 1.0], [3.0, 5.0, 3.0]], statistics=[[3.0, 1.0, 0.0], [1.0, 3.0, 0.0]], found=[1.0, 1.0]
    )
    torch.testing.assert_close(merged, torch.tensor([1.5, 4.0, 2.0]))
    weighted = run("fisher", [[1.0], [3.0]], statistics=[[1.0], [1.0]], found=[1.0, 1.0], weight=[1.0, 3.0])
    torch.testing.assert_close(weighted, torch.tensor([2.5]))
    evened = run("fisher", [[1.0], [3.0]], statistics=[[100.0], [1.0]], found=[0.01, 1.0])
    torch.testing.assert_close(evened, torch.tensor([2.0]))
    torch.testing.assert_close(run("fisher", [[1.0], [3.0]], found=[1.0, 1.0], weight=[1.0, 3.0]), torch.tensor([2.5]))


class Known:
    """Statistics in memory, as a method sees those on disk."""

    def __init__(self, tensors, facts):
        self.tensors, self.facts = {n: torch.as_tensor(t, dtype=torch.float64) for n, t in tensors.items()}, facts

    def __contains__(self, name):
        return name in self.tensors

    def tensor(self, name):
        return self.tensors[name].clone()


def gram(matrix, tokens=1.0, transposed=False):
    return Known({"gram/w": matrix, "tokens/w": tokens}, {"leader": {"w": "w"}, "stored": {"w": transposed}})


def test_regmean_by_hand():
    """One output, two inputs: the first model only ever saw the first input, the second only the second."""
    ours = run("regmean", [[[2.0, 7.0]], [[5.0, 4.0]]], found=[gram([[9, 0], [0, 0]]), gram([[0, 0], [0, 1]])])
    torch.testing.assert_close(ours, torch.tensor([[2.0, 4.0]]))
    # G1 = [[2,1],[1,2]], G2 = [[1,0],[0,1]], alpha 1: (G1+G2)^-1 (G1 w1 + G2 w2) with w1 = (3,0), w2 = (0,3)
    ours = run(
        "regmean", [[[3.0, 0.0]], [[0.0, 3.0]]], found=[gram([[2, 1], [1, 2]]), gram([[1, 0], [0, 1]])], reduce=1.0
    )
    torch.testing.assert_close(ours, torch.tensor([[1.5, 1.5]]))
    # alpha 0: each input's own energy alone, (2*3 + 1*0)/3 and (2*0 + 1*3)/3
    ours = run(
        "regmean", [[[3.0, 0.0]], [[0.0, 3.0]]], found=[gram([[2, 1], [1, 2]]), gram([[1, 0], [0, 1]])], reduce=0.0
    )
    torch.testing.assert_close(ours, torch.tensor([[2.0, 1.0]]))
    # means instead of sums: 100 tokens weigh no more than one
    pair = [gram([[100.0]], 100.0), gram([[1.0]])]
    torch.testing.assert_close(run("regmean", [[[1.0]], [[3.0]]], found=pair, gram="mean"), torch.tensor([[2.0]]))
    torch.testing.assert_close(run("regmean", [[[1.0]], [[3.0]]], found=pair), torch.tensor([[103 / 101]]))
    # an input nobody saw keeps the mean, and so does everything under a heavy ridge
    ours = run("regmean", [[[2.0, 7.0]], [[5.0, 4.0]]], found=[gram([[1, 0], [0, 0]]), gram([[0, 0], [0, 0]])])
    torch.testing.assert_close(ours, torch.tensor([[2.0, 5.5]]))
    heavy = run(
        "regmean", [[[2.0, 7.0]], [[5.0, 4.0]]], found=[gram([[9, 0], [0, 0]]), gram([[0, 0], [0, 1]])], ridge=1e9
    )
    torch.testing.assert_close(heavy, torch.tensor([[3.5, 5.5]]))
    # stored as [in, out]
    ours = run(
        "regmean",
        [[[2.0], [7.0]], [[5.0], [4.0]]],
        found=[gram([[9, 0], [0, 0]], 1, True), gram([[0, 0], [0, 1]], 1, True)],
    )
    torch.testing.assert_close(ours, torch.tensor([[2.0], [4.0]]))
    # equal models stay what they are, exactly
    model = 0.3 * torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    same = run("regmean", [model, model], found=[gram(np.eye(3)), gram(np.ones((3, 3)))])
    assert same.equal(model)


REASONING, DOMAIN, BASE = [1.0, 0.5, -0.2, 0.3], [0.8, 0.9, -0.4, 0.2], [0.7, 0.6, -0.3, 0.25]
PRIOR = [1e-3, 2e-3, 5e-4, 1e-3]
GRADIENTS = [[0.5, -0.4, 0.2, -0.3], [-0.6, -0.2, 0.1, -0.5], [-0.2, -0.1, -0.3, 0.4]]


def votes(penalty, gradients=GRADIENTS, zero_passes=True, prior=PRIOR, domain=DOMAIN):
    from interfuse.kit.collectors import Votes
    from interfuse.kit.passes import Seen

    gap = torch.tensor(REASONING, dtype=torch.float64) - torch.tensor(domain, dtype=torch.float64)
    price = penalty * torch.tensor(prior, dtype=torch.float64) * gap.square()
    collector = Votes({"w": (4,)}, {"w": price}.__getitem__, zero_passes)
    for row, g in enumerate(gradients):
        held = {"w": torch.tensor(g) if g is not None else None}
        collector.see([Seen([row], {}, {}, torch.zeros(1), held, {"w": torch.tensor(domain)})])
    return collector.result()["w"]


def test_rcp_by_hand():
    balance = votes(1000.0)
    assert balance.tolist() == [1, -1, 1, 1]
    merged = run("rcp", [REASONING, DOMAIN], BASE, statistics=[balance])
    torch.testing.assert_close(merged, torch.tensor([1.1, 0.5, -0.3, 0.25]))
    # without the price: the signs of gradient times weight alone (most of them at most 0)
    assert (votes(0.0) > 0).tolist() == [True, True, True, True]
    # a price beyond everything keeps the reasoning model
    assert run("rcp", [REASONING, DOMAIN], BASE, statistics=[votes(1e12)]).tolist() == pytest.approx(REASONING)
    # no change of the domain model: nothing to add; no gap: nothing to pay
    assert run("rcp", [REASONING, BASE], BASE, statistics=[balance]).tolist() == pytest.approx(REASONING)
    assert votes(1e12, domain=REASONING, prior=PRIOR).tolist() == [1, 3, 1, 1]
    # each example twice, or in another order, changes no decision
    assert votes(1000.0, GRADIENTS * 2).sign().tolist() == balance.sign().tolist()
    assert votes(1000.0, GRADIENTS[::-1]).tolist() == balance.tolist()
    # an even vote is no vote for
    assert votes(0.0, [GRADIENTS[0], [-v for v in GRADIENTS[0]]]).tolist() == [0, 0, 0, 0]
    assert run("rcp", [REASONING, DOMAIN], BASE, statistics=[[0, 0, 0, 0]]).tolist() == pytest.approx(REASONING)
    # a weight without any gradient and without a price: merged, or kept if asked for
    assert votes(0.0, [None]).tolist() == [1, 1, 1, 1]
    assert votes(0.0, [None], zero_passes=False).tolist() == [-1, -1, -1, -1]
    # a tensor no example could say anything about stays the reasoning model's
    assert run("rcp", [REASONING, DOMAIN], BASE).tolist() == pytest.approx(REASONING)


def test_the_curve_of_acceptance_counts_what_votes_would():
    from interfuse.kit.collectors import VoteCurve
    from interfuse.kit.passes import Seen

    tried = [0.0, 10.0, 1000.0, 1e5, 1e12]
    unit = (
        torch.tensor(PRIOR, dtype=torch.float64)
        * (torch.tensor(REASONING, dtype=torch.float64) - torch.tensor(DOMAIN, dtype=torch.float64)) ** 2
    )
    curve = VoteCurve({"w": (4,)}, {"w": unit}.__getitem__, tried)
    for row, g in enumerate(GRADIENTS):
        curve.see([Seen([row], {}, {}, torch.zeros(1), {"w": torch.tensor(g)}, {"w": torch.tensor(DOMAIN)})])
    assert curve.result()["w"].tolist() == [int((votes(t) > 0).sum()) for t in tried]
    assert curve.result()["w"].tolist()[2] == 3
    assert curve.result()["w"].tolist()[-1] == 0


def test_votes_are_not_a_mean():
    """One example that minds very much does not outvote two that like it a little."""
    row = [[10.0, 0, 0, 0], [-0.1, 0, 0, 0], [-0.1, 0, 0, 0]]
    assert votes(0.0, row, domain=[1.0, 1, 1, 1])[0] == 1
    assert sum(r[0] for r in row) > 0


def channels(s, transposed=False):
    return Known({"w": s}, {"stored": {"w": transposed}})


def test_aim_by_hand():
    base, merged = [[1.0, 2, 3], [0, 1, -1]], [[1.5, 2, 2], [1, 1, 0]]
    ours = run("aim", [merged], base, found=channels([2.0, 1, 4]), keep=0.4)
    torch.testing.assert_close(ours, torch.tensor([[1.35, 2, 2.6], [0.7, 1, -0.6]]))
    torch.testing.assert_close(run("aim", [merged], base, found=channels([2.0, 1, 4]), keep=1.0), torch.tensor(merged))
    turned = run("aim", [np.transpose(merged)], np.transpose(base), found=channels([2.0, 1, 4], True), keep=0.4)
    torch.testing.assert_close(turned, ours.T)
    torch.testing.assert_close(run("aim", [merged], base, found=channels([0.0, 0, 0])), torch.tensor(merged))
    torch.testing.assert_close(
        run("aim", [merged], base, name="embedding", found=channels([2.0, 1, 4])), torch.tensor(merged)
    )
    # a norm's weights, channel by channel; and the mean of two models' changes
    torch.testing.assert_close(
        run("aim", [[2.0, 2.0]], [1.0, 1.0], found=channels([1.0, 2.0]), keep=0.5), torch.tensor([1.75, 1.5])
    )
    pair = run("aim", [[2.0], [4.0]], [1.0], found=channels([1.0]), keep=0.5)
    torch.testing.assert_close(pair, torch.tensor([2.0]))


def test_sens_by_hand():
    base, models = torch.zeros(2), [[1.0, 0.0], [0.0, 1.0]]
    equal = run("sens", models, base, found=[{"w": 0.7}, {"w": 0.7}])
    torch.testing.assert_close(equal, torch.tensor([1.0, 1.0]))  # task arithmetic with weights of 1
    uneven = [{"w": math.log(0.75)}, {"w": math.log(0.25)}]
    torch.testing.assert_close(run("sens", models, base, found=uneven, scale=0.5), torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(run("sens", models, base, found=[{}, {}]), torch.tensor([1.0, 1.0]))
    # a layer of another number: the score is that of the source's own layer
    far = [{"a.0": math.log(0.75), "a.1": 9.0}, {"a.0": 9.0, "a.1": math.log(0.25)}]
    sources = [(0, "a.0.w"), (1, "a.1.w")]
    torch.testing.assert_close(
        run("sens", models, base, found=far, scale=0.5, sources=sources), torch.tensor([0.75, 0.25])
    )


def test_acm_by_hand():
    found = ([({"layer": 0.25}, 0.4), ({"layer": 0.5}, 0.1)], {0: {"w": "layer"}, 1: {"w": "layer"}})
    torch.testing.assert_close(run("acm", [[1.0], [2.0]], [0.0], found=found), torch.tensor([1.25]))
    outside = ([({"layer": 0.25}, 0.4), ({"layer": 0.5}, 0.1)], {0: {}, 1: {}})
    torch.testing.assert_close(run("acm", [[1.0], [2.0]], [0.0], found=outside, scale=2.0), torch.tensor([1.2]))


@pytest.mark.parametrize("slug", ["fisher", "regmean", "rcp", "aim", "sens", "acm"])
@pytest.mark.parametrize("step", [0.0, 1e-5])
def test_small_steps_of_models_at_work(slug, step):
    """Zero and tiny task vectors: the result lies between the models, to the last digits."""
    base, models = states(2, step)
    b, m = base["w"], [x["w"] for x in models]
    g = torch.Generator().manual_seed(5)
    positive = [torch.rand(b.shape, generator=g) for _ in m]
    x = torch.randn(30, 10, generator=g).double()
    found = {"fisher": [1.0, 1.0], "regmean": [gram(x.T @ x), gram(np.eye(10))], "aim": channels(np.arange(1.0, 11)), "rcp": None,
             "sens": [{"w": 0.3}, {"w": 0.7}], "acm": ([({"l": 0.3}, 0.3), ({"l": 0.5}, 0.5)], {0: {"w": "l"}, 1: {"w": "l"}})}[slug]  # fmt: skip
    statistics = {"fisher": positive, "rcp": [positive[0] - 0.5]}.get(slug, ())
    ours = run(slug, m, b, statistics=statistics, found=found)
    assert torch.isfinite(ours).all()
    largest = max(float((t - b).abs().max()) for t in m)
    assert float((ours - b).abs().max()) <= 4 * largest + 1e-7
    if not step:
        torch.testing.assert_close(ours, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "slug", [s for s in PLAIN if not load(f"merge/{s}").traits.get("ordered") and counts(s)[1] > 1]
)
def test_whole_merges_have_the_same_bits_in_any_order(slug, tmp_path):
    """The engine sorts models by content and carries weights and masks along: files are equal to the last bit."""
    import interfuse

    def net(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = torch.nn.Sequential(torch.nn.Linear(10, 14), torch.nn.LayerNorm(14))
            for p in made.parameters():
                p.data.add_(0.1 * torch.randn(p.shape))
            return made

    count = counts(slug)[1]
    models, own = [net(i) for i in range(count)], parameters(slug, count)
    base = {"base": net(99)} if takes_base(slug) else {}
    merge = getattr(interfuse.merge, slug.replace("-", "_"))
    one = merge(models, out=tmp_path / "one", seed=5, **base, **own).path
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in own.items()}
    two = merge(models[::-1], out=tmp_path / "two", seed=5, **base, **turned).path
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    if load(f"merge/{slug}").traits.get("random"):
        other = merge(models, out=tmp_path / "other", seed=6, **base, **own).path
        assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("slug", ["tsv", "twin", "lore", "iso-c"])
@pytest.mark.parametrize("svd", ["gram", "randomised"])
def test_faster_decompositions_give_the_oracles_numbers(slug, svd):
    if (slug, svd) == ("iso-c", "randomised"):
        pytest.skip("every direction counts, so there are no leading ones to find")
    g = torch.Generator().manual_seed(7)
    base = {"w": 0.2 * torch.randn(90, 60, generator=g)}
    # changes of five directions each, and a little of all others
    models = [{"w": base["w"] + 0.1 * torch.randn(90, 5, generator=g) @ torch.randn(5, 60, generator=g) + 1e-2 * torch.randn(90, 60, generator=g)}
              for _ in range(3)]  # fmt: skip
    own = {"twin": {"density": 0.1}, "lore": {"steps": 3, "mu": 0.01}}.get(slug, {})
    said = by_oracle(slug, models, base, **own)["w"]
    ours = run(slug, [m["w"] for m in models], base["w"] if takes_base(slug) else None, svd=svd, **own)
    np.testing.assert_allclose(ours.double().numpy(), said, rtol=1e-4, atol=2e-5 if svd == "randomised" else 1e-6)


def test_a_method_that_prepares_matrices_says_how_much_memory_that_takes(tmp_path):
    """One that prepares nothing need not."""
    from interfuse.merge.room import run as run_room

    def net(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.nn.Linear(6, 4)

    method = load("merge/iso-c")
    call = prepare(load_room("merge"), method, {"models": [net(1), net(2)], "base": net(3)}, Ctx())
    silent = {k: v for k, v in method.traits.items() if k != "squares"}
    with pytest.raises(InterfuseError, match="does not say how much memory") as caught:
        run_room(dataclasses.replace(call, method=dataclasses.replace(method, traits=silent)), tmp_path / "out")
    assert caught.value.code == "method.card"
    plain = {k: v for k, v in silent.items() if k != "prepare"}
    assert (
        run_room(dataclasses.replace(call, method=dataclasses.replace(method, traits=plain)), tmp_path / "plain")[
            "tensors"
        ]
        == 2
    )
