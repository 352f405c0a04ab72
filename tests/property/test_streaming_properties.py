"""Order statistics, sums, masks and merges do not depend on how the work is cut, and equal slow obvious oracles."""

import math
import struct
import threading
import time
import weakref

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from interfuse.core.errors import InterfuseError
from interfuse.data.weight_writer import MemoryWriter, WeightWriter
from interfuse.data.weights import Weights
from interfuse.kit import reductions
from interfuse.kit.counter_random import below, tensor_key, uniform
from interfuse.kit.reductions import (
    CHUNK,
    Difference,
    gram,
    kth_smallest,
    kth_smallest_of,
    magnitude_thresholds,
    moments,
    sums,
)
from interfuse.kit.streaming import Job, Journal, matrix_step, stream_merge

TINY = 1.401298464324817e-45  # the smallest denormal float32
SPECIAL = [0.0, -0.0, TINY, -TINY, 1.17549435e-38, 1.0, -1.0, 0.5, 3.4028235e38, -3.4028235e38]


def float32s():
    """Arrays rich in ties, zeros of both signs and denormals."""
    anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from(SPECIAL) | anything)


def flat(array):
    return Weights.from_state_dict({"x": torch.from_numpy(np.asarray(array))}).source("x")


def kept_by_sorting(arrays, keep):
    """Oracle: sort (-|x|, tensor, index) and mark the first ``keep``."""
    order = sorted((-abs(float(v)), t, i) for t, array in enumerate(arrays) for i, v in enumerate(array))
    masks = [np.zeros(len(array), bool) for array in arrays]
    for _, t, i in order[:keep]:
        masks[t][i] = True
    return masks


@pytest.mark.parametrize("way", ["whole", "bracket", "count"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays=st.lists(float32s(), min_size=1, max_size=4), data=st.data())
def test_largest_magnitudes_equal_sorting(way, monkeypatch, arrays, data):
    if way != "whole":
        monkeypatch.setattr(reductions, "_HELD", len(arrays[0]) - 1 if way == "bracket" else 0)
        arrays = arrays[: 1 if way == "bracket" else None]
        keys = sorted(data.draw(st.tuples(*[st.sampled_from(np.abs(arrays[0]).view(np.int32).tolist())] * 2)))
        monkeypatch.setattr(reductions, "_bracket", lambda *rest: keys)  # right, wrong, wide, narrow
    keep = data.draw(st.integers(0, sum(map(len, arrays))))
    for workers in (1, 2):
        thresholds = magnitude_thresholds([flat(a) for a in arrays], keep, workers=workers)
        for array, threshold, expected in zip(arrays, thresholds, kept_by_sorting(arrays, keep), strict=True):
            assert threshold.mask(torch.from_numpy(array), 0).numpy().tolist() == expected.tolist()
            cut = data.draw(st.integers(0, len(array)))
            parts = [
                threshold.mask(torch.from_numpy(array[:cut]), 0),
                threshold.mask(torch.from_numpy(array[cut:]), cut),
            ]
            assert torch.cat(parts).numpy().tolist() == expected.tolist()
            trimmed = [
                threshold.trim_(torch.from_numpy(p.copy()), at) for p, at in ((array[:cut], 0), (array[cut:], cut))
            ]
            assert torch.cat(trimmed).numpy().tolist() == np.where(expected, array, 0).tolist()


@settings(max_examples=200, deadline=None)
@given(float32s(), st.data())
def test_kth_smallest_equals_sorting(array, data):
    k = data.draw(st.integers(0, len(array) - 1))
    assert kth_smallest(flat(array), k) == sorted(array)[k]
    assert kth_smallest(flat(array), k, magnitude=True) == sorted(abs(array))[k]


@pytest.mark.parametrize("held", [1 << 21, 3, 0])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        np.float64, st.integers(1, 60), elements=st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e308]) | st.floats(0, 10)
    ),
    st.data(),
)
def test_ranks_of_computed_numbers_equal_sorting(held, monkeypatch, array, data):
    monkeypatch.setattr(reductions, "_HELD", held)
    ranks = data.draw(st.lists(st.integers(0, len(array) - 1), min_size=1, max_size=6))
    found = kth_smallest_of(lambda: iter(np.array_split(array, 3)), ranks)
    assert found == [float(np.sort(array)[rank]) for rank in ranks]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_ranks_of_what_has_no_order_are_refused(bad):
    with pytest.raises(InterfuseError) as caught:
        kth_smallest_of(lambda: iter([np.array([1.0, bad])]), [0])
    assert caught.value.code == "input.nan"
    with pytest.raises(InterfuseError) as caught:
        kth_smallest_of(lambda: iter([np.array([1.0])]), [1])
    assert caught.value.code == "param.value"


@pytest.mark.parametrize("held", [1 << 21, 100_000, 0])
@pytest.mark.parametrize("kind", ["normal", "sorted", "bfloat16", "constant", "two values", "one outlier"])
def test_largest_magnitudes_of_a_long_tensor(kind, held, monkeypatch):
    monkeypatch.setattr(reductions, "_HELD", held)
    n = 700_001  # three readings
    rng = np.random.default_rng(3)
    x = rng.standard_normal(n).astype(np.float32)
    if kind == "bfloat16":
        x = torch.from_numpy(x).bfloat16().float().numpy()
    elif kind == "sorted":
        x.sort()
    elif kind == "constant":
        x[:] = 0.25
    elif kind == "two values":
        x = np.where(x > 0, np.float32(1), np.float32(-TINY))
    elif kind == "one outlier":
        x = np.zeros(n, np.float32)
        x[n - 5] = -1e30
    for keep in (1, 2, n // 5, n // 2, n - 1, n):
        (threshold,) = magnitude_thresholds([flat(x)], keep)
        order = np.lexsort((np.arange(n), -np.abs(x).astype(np.float64)))
        expected = np.zeros(n, bool)
        expected[order[:keep]] = True
        assert np.array_equal(threshold.mask(torch.from_numpy(x), 0).numpy(), expected)
    ordered = np.sort(x)
    for k in (0, 1, n // 2, n - 1):
        assert kth_smallest(flat(x), k) == ordered[k]


def test_the_bracket_is_what_answers(monkeypatch):
    """A long ordinary tensor is read once: counting bit patterns is never reached."""
    monkeypatch.setattr(reductions, "_HELD", 100_000)
    monkeypatch.setattr(reductions, "_select", lambda *rest: pytest.fail("counted"))
    x = np.random.default_rng(0).standard_normal(700_001).astype(np.float32)
    for keep in (7, 70_000, 350_000, 699_000):
        magnitude_thresholds([flat(x)], keep)


@pytest.mark.parametrize("held", [1 << 21, 2, 0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_order_of_nan_is_refused(bad, held, monkeypatch):
    monkeypatch.setattr(reductions, "_HELD", held)
    x = np.array([1, bad, 2], np.float32)
    for call in (lambda: magnitude_thresholds([flat(x)], 1), lambda: kth_smallest(flat(x), 1)):
        with pytest.raises(InterfuseError) as caught:
            call()
        assert caught.value.code == "input.nan"
    for keep in (-1, 4):
        with pytest.raises(InterfuseError) as caught:
            magnitude_thresholds([flat(np.ones(3, np.float32))], keep)
        assert caught.value.code == "param.value"


@settings(max_examples=100, deadline=None)
@given(float32s())
def test_moments_equal_exact_arithmetic(array):
    from fractions import Fraction

    small = [Fraction(float(v)) for v in array if abs(v) < 1e10]
    if not small:
        return
    found = moments(flat(np.array([float(v) for v in small], np.float32)))
    n = len(small)
    mean = sum(small) / n
    scale = float(max(abs(v) for v in small)) or 1.0
    assert found.count == n
    assert found.mean == pytest.approx(float(mean), abs=1e-14 * scale)
    assert found.variance == pytest.approx(float(sum((v - mean) ** 2 for v in small) / n), abs=1e-13 * scale**2)
    assert found.mean_square == pytest.approx(float(sum(v * v for v in small) / n), rel=1e-13, abs=1e-300)
    assert found.mean_absolute == pytest.approx(float(sum(map(abs, small)) / n), rel=1e-13)
    assert (found.positive, found.negative) == (sum(v > 0 for v in small), sum(v < 0 for v in small))


def test_constant_tensor_has_no_variance():
    assert moments(flat(np.full(100_003, 0.1, np.float32))).variance == 0.0


def test_gram_and_sums_of_long_tensors():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(600_011).astype(np.float32) for _ in range(3)]
    expected = np.array([[math.fsum(a.astype(float) * b) for b in arrays] for a in arrays])
    sources = [flat(a) for a in arrays]
    assert np.allclose(gram(sources), expected, rtol=1e-14, atol=1e-9)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gram(sources)
        torch.set_num_threads(2)
        assert np.array_equal(one, gram(sources))
    finally:
        torch.set_num_threads(before)
    assert sums([flat(np.empty(0, np.float32))], lambda x: [x[0]]) == [0.0]
    with pytest.raises(InterfuseError) as caught:
        gram([flat(arrays[0]), flat(arrays[1][:-1])])
    assert caught.value.code == "input.shape"


def test_sums_do_not_see_how_many_chunks_are_read_together():
    x = np.random.default_rng(1).standard_normal(40 * CHUNK).astype(np.float32)
    whole = sums([flat(x)], lambda v: [v[0]])[0]
    chunks = [sums([flat(x[i : i + CHUNK])], lambda v: [v[0]])[0] for i in range(0, len(x), CHUNK)]
    assert math.fsum(chunks) == whole


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**128 - 1), st.integers(0, 3000), st.integers(0, 300), st.integers(0, 300))
def test_random_numbers_belong_to_elements(key, start, n, more):
    long = uniform(key, start, start + n + more)
    assert uniform(key, start, start + n).equal(long[:n])
    assert uniform(key, start + n, start + n + more).equal(long[n:])
    assert bool(((long >= 0) & (long < 1)).all())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**128 - 1),
    st.integers(0, 3000),
    st.integers(0, 3000),
    st.one_of(st.floats(-0.1, 1.1), st.integers(0, 256).map(lambda k: k / 256)),
)
def test_masks_are_comparisons_of_the_numbers(key, start, n, probability):
    expected = uniform(key, start, start + n).double() < probability
    assert below(key, start, start + n, probability).tolist() == expected.tolist()


def test_masks_where_the_upper_bits_are_equal():
    # about 1 in 65,536 elements is decided by its lower bits
    for probability in (0.3, 1e-6, 1 - 2.0**-20):
        expected = uniform(3, 7, 1_000_007).double() < probability
        assert torch.from_numpy(below(3, 7, 1_000_007, probability)).equal(expected)


def test_random_numbers_are_uniform_and_keys_differ():
    u = uniform(tensor_key(0, "model", "tensor"), 0, 1_000_000).double()
    counts = torch.histc(u, 100, 0, 1)
    chi2 = float(((counts - 10_000) ** 2 / 10_000).sum())
    assert 50 < chi2 < 160  # 99 degrees of freedom: about 1 in 10,000 lies outside
    other = uniform(tensor_key(0, "model2", "tensor"), 0, 1_000_000).double()
    assert abs(float(((u - 0.5) * (other - 0.5)).mean())) < 5 / 12 / 1000
    keys = {tensor_key(s, m, t) for s in (0, 1) for m in ("a", "b", "a\0b") for t in ("x", "y")}
    assert len(keys) == 12
    # fixed for ever: a changed stream would change every released merge
    assert uniform(tensor_key(7, "a", "b"), 5, 8).tolist() == RECORDED


RECORDED = [0.6304760575294495, 0.9900367259979248, 0.2914477586746216]


def make_models(directory=None):
    """Three models of awkward sizes in bf16, f16 and f32."""
    rng = torch.Generator().manual_seed(5)
    shapes = {"embed": (1003, 131), "norm": (7,), "scalar": (), "empty": (0, 3), "w": (257, 129), "long": (100_003,)}
    models = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        state = {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in shapes.items()}
        state["ids"] = torch.arange(10)
        models.append(Weights.from_state_dict(state))
    return models


def make_jobs(models, kind):
    def prepare(sources):
        base, *others = sources
        deltas = [Difference(other, base) for other in others]
        size = math.prod(base.shape)
        return gram(deltas), [magnitude_thresholds([d], size // 3)[0] for d in deltas] if size else None

    def dense(x, block):  # transcendental functions show differences between vector bodies and tails
        products, thresholds = block.facts
        out = torch.sin(x[0]) * (1 + float(products[0, 1]) * 1e-6)
        for i, threshold in enumerate(thresholds or []):
            delta = x[i + 1] - x[0]
            mask = threshold.mask(delta, block.start)
            drop = uniform(tensor_key(1, str(i), block.name), block.start, block.stop).view(delta.shape) < 0.5
            out += torch.exp(-delta.square()) * mask * drop
        return out

    def rows(x, block):
        return torch.softmax(x[0], -1) * x[1] + torch.lerp(x[2], x[1], 0.3)

    def whole(x, block):
        return x[0] - x[1].mean() if x[0].numel() else x[0]

    function = {"element": dense, "row": rows, "tensor": whole}[kind]
    jobs = []
    for name in models[0]:
        sources = tuple(m.source(name) for m in models)
        if name == "ids":
            jobs.append(Job(name, sources[:1]))
        else:
            jobs.append(Job(name, sources, function, kind, prepare if kind == "element" else None, temporaries=4))
    return jobs


LAYOUT_TYPES = {"embed": torch.bfloat16, "norm": torch.float32, "w": torch.float16, "ids": torch.int64}


def layout_of(models):
    return {name: (LAYOUT_TYPES.get(name, torch.bfloat16), info.shape) for name, info in models[0].items()}


@pytest.mark.parametrize("kind", ["element", "row", "tensor"])
def test_bytes_do_not_depend_on_blocks_workers_or_memory(kind):
    models = make_models()
    results = []
    for workers, block_bytes, memory in (
        (1, 1 << 26, 1 << 30),
        (1, 1, 1 << 30),
        (2, 1 << 17, 1 << 30),
        (3, 1, 8 << 20),
    ):
        writer = MemoryWriter(layout_of(models))
        stream_merge(make_jobs(models, kind), writer, workers=workers, block_bytes=block_bytes, max_memory=memory)
        results.append({name: t.reshape(-1).view(torch.uint8).tolist() for name, t in writer.state.items()})
    assert all(result == results[0] for result in results[1:])
    assert writer.state["ids"].tolist() == list(range(10))


@pytest.mark.parametrize("shape", [(5000, 131), (131, 7000)])
def test_blocks_of_a_matrix_follow_from_its_shape(shape):
    """Products of matrices: how many rows are worked on at once shows in the last digits, so that is always the same."""
    rng = torch.Generator().manual_seed(1)
    source = flat(torch.randn(shape, generator=rng).numpy())
    turn = torch.randn(shape[1], shape[1], generator=rng)
    results, seen = [], []
    for workers, block_bytes, memory in ((1, 1 << 26, 1 << 30), (2, 1, 1 << 30), (3, 1 << 20, 30 << 20)):
        blocks: list[tuple[int, int]] = []

        def function(x, block, blocks=blocks):
            blocks.append((block.start, block.stop))
            return x[0] @ turn

        writer = MemoryWriter({"w": (torch.float32, shape)})
        stream_merge([Job("w", (source,), function, "matrix")], writer, workers=workers, block_bytes=block_bytes, max_memory=memory)  # fmt: skip
        results.append(writer.state["w"].clone())
        seen.append(sorted(blocks))
    assert all(torch.equal(result.view(torch.int32), results[0].view(torch.int32)) for result in results[1:])
    assert seen[0] == seen[1] == seen[2]
    assert [start for start, _ in seen[0]] == list(range(0, math.prod(shape), matrix_step(shape)))
    assert len(seen[0]) > 1
    assert all(start % (32 * shape[1]) == 0 for start, _ in seen[0])


class AtOnce:
    """A preparation that takes a moment and counts how many of its kind run at once."""

    def __init__(self):
        self.running, self.peak, self.lock = 0, 0, threading.Lock()

    def __call__(self, sources):
        with self.lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
        time.sleep(0.05)
        with self.lock:
            self.running -= 1
        return 1.0


@pytest.mark.parametrize(("memory", "most"), [(8 << 20, 1), (64 << 20, 1), (80 << 20, 2), (120 << 20, 3)])
def test_preparations_keep_to_their_share_of_the_memory_together(memory, most):
    """As many at once as fit into it, one in any case."""
    prepare = AtOnce()
    source = flat(np.ones((40, 40), np.float32))
    jobs = [Job(str(i), (source,), lambda x, b: x[0] * b.facts, "matrix", prepare, preparing=5 << 20) for i in range(6)]
    writer = MemoryWriter({job.name: (torch.float32, (40, 40)) for job in jobs})
    stream_merge(jobs, writer, workers=3, max_memory=memory)
    assert prepare.peak == most
    assert all(torch.equal(made, torch.ones(40, 40)) for made in writer.state.values())
    with pytest.raises(InterfuseError, match="needs 5,") as caught:
        stream_merge(jobs, writer, workers=3, max_memory=5 << 20)
    assert caught.value.code == "input.limit"


@pytest.mark.parametrize(("kept", "most"), [(0, 2), (3, 1)])
def test_of_a_preparation_what_it_gave_counts_until_the_output_is_done(kept, most):
    """Two preparations side by side fit into the share, but not beside what a third has left, whose output waits."""
    third, at_once = threading.Event(), AtOnce()

    def first(sources):
        return [torch.zeros(max(kept << 18, 1)), (torch.zeros(1),)]

    def prepare(sources):
        made = at_once(sources)
        third.set()
        return made

    def slow(x, block):
        third.wait(10)
        return x[0]

    source = flat(np.ones((40, 40), np.float32))
    jobs = [Job("first", (source,), slow, "matrix", first, preparing=5 << 20)]
    jobs += [
        Job(str(i), (source,), lambda x, b: x[0] * b.facts, "matrix", prepare, preparing=5 << 20) for i in range(2)
    ]
    writer = MemoryWriter({job.name: (torch.float32, (40, 40)) for job in jobs})
    stream_merge(jobs, writer, workers=3, max_memory=80 << 20)
    assert at_once.peak == most


def test_nothing_of_a_preparation_is_held_when_its_output_is_done():
    """Not by the thread that made it either, while that prepares the next one."""
    left: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def prepare(sources):
        alive.extend(ref() is not None for ref in left)
        made = torch.ones(())
        left.append(weakref.ref(made))
        return made

    source = flat(np.ones((40, 40), np.float32))
    jobs = [Job(str(i), (source,), lambda x, b: x[0] * b.facts, "matrix", prepare, preparing=1 << 20) for i in range(3)]
    writer = MemoryWriter({job.name: (torch.float32, (40, 40)) for job in jobs})
    stream_merge(jobs, writer, workers=1)
    assert alive == [False] * 3


@pytest.mark.parametrize("workers", [1, 3])
def test_a_preparation_and_a_whole_tensor_take_turns(workers):
    """Where each fits into the memory alone, but not both together."""
    small, large = flat(np.ones((40, 40), np.float32)), flat(np.ones((1000, 1000), np.float32))
    prepared = Job("prepared", (small,), lambda x, b: x[0] * b.facts, "matrix", lambda _: 2.0, preparing=5 << 20)
    whole = Job("whole", (large,), lambda x, b: x[0] * 2, "tensor")
    for jobs in ([prepared, whole], [whole, prepared]):
        writer = MemoryWriter({"prepared": (torch.float32, (40, 40)), "whole": (torch.float32, (1000, 1000))})
        run = threading.Thread(target=stream_merge, args=(jobs, writer), kwargs={"workers": workers, "max_memory": 16 << 20}, daemon=True)  # fmt: skip
        run.start()
        run.join(20)
        assert not run.is_alive()
        assert all(torch.equal(made, torch.full_like(made, 2.0)) for made in writer.state.values())


def test_linear_merge_equals_arithmetic(tmp_path):
    models = make_models()
    jobs = [
        Job(n, tuple(m.source(n) for m in models), (lambda x, b: x[0].add_(x[1]).add_(x[2]).div_(3)))
        if n != "ids"
        else Job(n, (models[0].source(n),))
        for n in models[0]
    ]
    seen = []
    with WeightWriter(tmp_path, layout_of(models), max_shard_bytes=100_000) as writer:
        stats = stream_merge(jobs, writer, workers=2, progress=lambda done, total, name: seen.append((done, total)))
    assert (stats.tensors, stats.resumed) == (7, 0)
    assert seen[-1][0] == seen[-1][1] == stats.bytes_written
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    with Weights.open(tmp_path) as merged:
        for name, (dtype, _) in layout_of(models).items():
            a, b, c = (m.tensor(name) for m in models)
            expected = a if name == "ids" else ((a.float() + b.float() + c.float()) / 3).to(dtype)
            assert merged.tensor(name).equal(expected)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.uint32, st.integers(1, 40)))
def test_float32_is_rounded_to_nearest_even(bits):
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 65504)]
    writer = MemoryWriter({"b": (torch.bfloat16, values.shape), "h": (torch.float16, values.shape)})
    source = flat(values)
    stream_merge([Job("b", (source,)), Job("h", (source,), lambda x, b: x[0])], writer, workers=1)
    assert writer.state["h"].numpy().tobytes() == values.astype(np.float16).tobytes()
    expected = []
    for word in values.view(np.uint32).tolist():  # round half to even on the upper 16 bits
        upper, lower = word >> 16, word & 0xFFFF
        expected.append(upper + (lower > 0x8000 or (lower == 0x8000 and upper & 1)))
    assert writer.state["b"].view(torch.int16).tolist() == [
        struct.unpack("<h", struct.pack("<H", e))[0] for e in expected
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64]), st.binary(min_size=8)
)
def test_copies_keep_every_bit(dtype, raw):
    raw = raw[: len(raw) // 8 * 8]
    tensor = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype)
    writer = MemoryWriter({"x": (dtype, tuple(tensor.shape))})
    stream_merge([Job("x", (Weights.from_state_dict({"x": tensor}).source("x"),))], writer, workers=1)
    assert writer.state["x"].view(torch.uint8).numpy().tobytes() == raw


def test_wrong_jobs_are_refused_before_work():
    models = make_models()
    source = models[0].source
    boom = [Job("w", (source("w"),), lambda x, b: pytest.fail("work began"))]
    cases = {
        "input.missing": [[], [*boom, Job("other", (source("w"),))]],
        "input.duplicate": [boom * 2],
        "input.shape": [[Job("w", (source("norm"),), lambda x, b: x[0])]],
        "input.empty": [[Job("w", ())]],
    }
    for code, lists in cases.items():
        for jobs in lists:
            with pytest.raises(InterfuseError) as caught:
                stream_merge(jobs, MemoryWriter({"w": (torch.float32, (257, 129))}))
            assert caught.value.code == code
    with pytest.raises(InterfuseError) as caught:
        stream_merge([Job("i", (source("ids"),), lambda x, b: x[0])], MemoryWriter({"i": (torch.int64, (10,))}))
    assert caught.value.code == "input.type"
    for result in (lambda x, b: x[0].numpy(), lambda x, b: x):  # arrays where tensors are due, and no numbers at all
        with pytest.raises(InterfuseError, match=r"the function returned a (ndarray|list), not a Tensor") as caught:
            stream_merge([Job("w", (source("w"),), result)], MemoryWriter({"w": (torch.float32, (257, 129))}))
        assert caught.value.code == "input.type"
    jobs = [Job("w", (source("w"),), lambda x, b: x[0], "tensor")]
    with pytest.raises(InterfuseError) as caught:
        stream_merge(jobs, MemoryWriter({"w": (torch.float32, (257, 129))}), max_memory=10_000)
    assert caught.value.code == "input.limit"
    for wrong in ({"workers": 0}, {"block_bytes": 0}, {"max_memory": 0}):
        with pytest.raises(InterfuseError) as caught:
            stream_merge(boom, MemoryWriter({"w": (torch.float32, (257, 129))}), **wrong)
        assert caught.value.code == "param.value"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e5])
def test_results_that_are_no_numbers_are_refused(bad):
    writer = MemoryWriter({"w": (torch.float16, (100_000,))})
    source = flat(np.zeros(100_000, np.float32))

    def function(x, block):
        if block.start <= 70_000 < block.stop:
            x[0][70_000 - block.start] = bad
        return x[0]

    with pytest.raises(InterfuseError, match="tensor 'w'") as caught:
        stream_merge([Job("w", (source,), function)], writer, block_bytes=1, workers=2)
    assert caught.value.code == "input.nan"


def test_an_error_in_one_thread_stops_all_and_is_raised():
    source = flat(np.zeros(3_000_000, np.float32))
    threads = torch.get_num_threads()

    def function(x, block):
        if block.start > 1_000_000:
            raise ZeroDivisionError("planted")
        return x[0]

    writer = MemoryWriter({"w": (torch.float32, (3_000_000,))})
    with pytest.raises(ZeroDivisionError, match="planted") as caught:
        stream_merge([Job("w", (source,), function)], writer, block_bytes=1, workers=4)
    assert any("tensor 'w'" in note for note in caught.value.__notes__)
    assert torch.get_num_threads() == threads


def test_checksums_are_of_the_bytes_in_order(tmp_path):
    values = torch.arange(400_000, dtype=torch.float32)
    source = Weights.from_state_dict({"x": values}).source("x")

    def function(x, block):
        time.sleep(0.002 if block.start // CHUNK % 3 == 0 else 0)  # later blocks finish first
        return x[0]

    writer = MemoryWriter({"x": (torch.float32, (400_000,))})
    with Journal(tmp_path / "journal", "k") as journal:
        stats = stream_merge([Job("x", (source,), function)], writer, workers=4, block_bytes=1, journal=journal)
    assert writer.state["x"].equal(values)
    assert stats.checksum == {"x": xxhash.xxh3_128(values.numpy().tobytes()).hexdigest()}
