"""Whole merges from the shell, beside mergekit on the same files and beside a plain copy of the same bytes.

Seconds are wall time of whole processes, start-up included. The copy reads every source to the end, writes one, and waits for the
disk. Commands take turns, so that a slow moment hits all. mergekit is not a dependency: ``--mergekit``, the variable MERGEKIT or the
search path names its command (installed in an environment of its own); without it only the copy is compared with.
Results are compared in the same run: with mergekit's answer as its users get it (computed in bfloat16) and, once, with what it
gives when it computes in float32 and rounds at the end, as Interfuse does.

    python benchmarks/merge_speed.py                                  all parts at 1.3 GB
    python benchmarks/merge_speed.py --part speed --methods linear,slerp --gigabytes 3 --threads 1 --cold
    python benchmarks/merge_speed.py --part memory                    peak private memory, and a hard limit of 1 GB
    python benchmarks/merge_speed.py --part equality                  every difference to mergekit in float32, by its cause
    python benchmarks/merge_speed.py --part plan                      planning 50,000 tensors
    python benchmarks/merge_speed.py --part svd                       decompositions beside the machine's matrix peak

Each call updates its own rows of results/merge-speed.json and says what it did.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from merge_equality import EXPLAINED, explain
from record import RESULTS, save

HIDDEN, FFN, VOCAB = 2048, 5632, 32000
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": 3},
    "task-arithmetic": {"merge_method": "task_arithmetic", "models": 2, "base": True},
    "slerp": {"merge_method": "slerp", "models": 2, "ours": ["--t", "0.5"], "theirs": {"t": 0.5}},
    "ties": {"merge_method": "ties", "models": 2, "base": True, "ours": ["--density", "0.2"], "theirs": {"density": 0.2}},
    "dare-ties": {"merge_method": "dare_ties", "models": 2, "base": True, "ours": ["--density", "0.5", "--rescale", "l1", "--no-normalize"], "theirs": {"density": 0.5}},
    "sce": {"merge_method": "sce", "models": 2, "base": True, "ours": ["--select-topk", "0.5"], "theirs": {"select_topk": 0.5}},
}  # fmt: skip
#: ``--max-memory`` under the hard limit, where it is not 0.3: what lore needs of the largest matrix is 308 MB
LIMITED = {"lore": "0.31"}
#: What memory is measured of: these, and methods that mergekit is not raced at.
EVERY = {**METHODS, "nuslerp": {"models": 2}, "multislerp": {"models": 3}, "karcher": {"models": 3}, "geometric-median": {"models": 3}, "nearswap": {"models": 2},
         **{name: {"models": 2, "base": True} for name in ("dare-linear", "della", "breadcrumbs", "model-stock", "varm")},
         "arcee-fusion": {"models": 2},
         # these decompose matrices, which takes minutes: measured on sources of few layers, by the fast way and by the exact one
         **{f"{name}{end}": {"slug": name, "models": 2, "base": name in ("iso-c", "tsv"), "decomposes": True,
                             "ours": ["--svd", how, *(["--combine", "sum", "--steps", "2"] if name == "lore" else [])]}
            for name in ("iso-c", "twin", "tsv", "lore") for end, how in (("", "gram"), (" exact", "exact"))}}  # fmt: skip
#: How many times as fast as mergekit a merge shall be; and at most so many times as long as the plain copy where it only sums.
GOALS = {"linear": 5, "task-arithmetic": 5, "slerp": 5, "ties": 10, "dare-ties": 5, "sce": 5}
COPY_GOAL = {"linear": 2, "task-arithmetic": 2, "slerp": 2}
#: How many times mergekit runs where it takes minutes and nothing is said.
SLOW = {"ties": 1, "dare-ties": 2, "sce": 2}


def checkpoint(folder: Path, gigabytes: float, seed: int) -> None:
    """A Llama-shaped bf16 checkpoint of about the given size: a shared base and small changes. With 0.26 gigabytes it has no layers: two
    matrices [32000, 2048] alone."""
    folder.mkdir(parents=True)
    per_layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN + 2 * HIDDEN
    layers = max(0, round((gigabytes * 1e9 / 2 - 2 * VOCAB * HIDDEN) / per_layer))
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {at + f"self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
        shapes |= {
            at + "mlp.gate_proj.weight": (FFN, HIDDEN),
            at + "mlp.up_proj.weight": (FFN, HIDDEN),
            at + "mlp.down_proj.weight": (HIDDEN, FFN),
        }
        shapes |= {at + "input_layernorm.weight": (HIDDEN,), at + "post_attention_layernorm.weight": (HIDDEN,)}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    from safetensors.torch import save_file

    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        base = torch.randn(shape, generator=torch.Generator().manual_seed(number)) * 0.02
        own = torch.Generator().manual_seed(10_000 * seed + number)
        change = torch.randn(shape, generator=own) * 0.002 if seed else 0.0
        tensors[name] = (base + change).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "vocab_size": VOCAB,
              "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 2048, "tie_word_embeddings": False, "dtype": "bfloat16"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def sources(gigabytes: float, keep: Path | None):
    """A folder with base, a, b and c; removed afterwards unless it shall be kept."""
    root = keep / f"{gigabytes:g}" if keep else Path(tempfile.mkdtemp(prefix="merge-speed-"))
    try:
        for i, name in enumerate(["base", "a", "b", "c"]):
            if not (root / name / "config.json").is_file():
                shutil.rmtree(root / name, ignore_errors=True)
                checkpoint(root / name, gigabytes, i)
        yield root
    finally:
        for left in ("ours", "theirs", "exact", "copy", "recipe.yml") if keep else (".",):
            path = root / left
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def timed(command: list[str], threads: int, limit: int = 0) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak private memory (anonymous pages, megabytes) of a whole process.

    Args:
        threads: processors it may use. limit: bytes of private memory (RLIMIT_DATA) it may ask for; 0 for no limit.
    """

    def confine() -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    env.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # both programs run from compiled files, as they do where they are installed
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=confine)
    peak = [0.0]

    def watch() -> None:
        status = Path(f"/proc/{process.pid}/status")
        with contextlib.suppress(OSError):
            while process.returncode is None:
                text = status.read_text()
                at = text.find("RssAnon:")
                if at < 0:
                    return
                peak[0] = max(peak[0], int(text[at + 8 : text.index("kB", at)]) / 1024)
                time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    said = process.communicate()[1]
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(said.decode(errors="replace")[-1500:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak[0]


COPY = """
import os, sys
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
buffer = bytearray(1 << 22)
for number, name in enumerate(sys.argv[2:]):
    with open(name, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            if number == 0:
                os.write(out, memoryview(buffer)[:n])
os.fsync(out)
"""


def forget(files: list[str]) -> None:
    """Drops the files from the system's cache: the next reading is from the disk."""
    for name in files:
        fd = os.open(name, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def equal(ours: Path, theirs: Path) -> dict[str, float]:
    """How far two results are apart, over all values of bf16 weights.

    Returns:
        Share of equal values, share at most one unit in the last place apart, mean distance of the others in such units, and the largest
        difference relative to the tensor's largest value.
    """
    from safetensors import safe_open

    files = [safe_open(f, "pt") for f in sorted(theirs.glob("*.safetensors"))]
    where = {name: f for f in files for name in f.keys()}  # noqa: SIM118
    same = near = total = 0
    worst = 0.0
    with safe_open(ours / "model.safetensors", "pt") as mine:
        for name in mine.keys():  # noqa: SIM118
            x, y = mine.get_tensor(name), where[name].get_tensor(name)
            a, b = (t.view(torch.int16).numpy().reshape(-1) for t in (x, y))
            other = np.flatnonzero(a != b)
            p, q = a[other].astype(np.int32), b[other].astype(np.int32)
            p, q = (
                np.maximum(p, -32768 - p),
                np.maximum(q, -32768 - q),
            )  # bit patterns in the order of the values they stand for
            same += a.size - int(np.count_nonzero(p != q))
            near += a.size - int(np.count_nonzero(np.abs(p - q) > 1))
            total += a.size
            if other.size:
                u, v = (t.reshape(-1)[torch.from_numpy(other)].float() for t in (x, y))
                worst = max(worst, float((u - v).abs().max() / y.abs().max().float()))
    return {"equal": same / total, "within one unit": near / total, "largest relative difference": worst}


def middle(values: list[float]) -> dict[str, float]:
    """Median, smallest, largest and number of some seconds."""
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def mergekit_command(path: str | None) -> str | None:
    """mergekit-yaml, or None where it is not installed."""
    return path or os.environ.get("MERGEKIT") or shutil.which("mergekit-yaml")


def recipe_of(method: str, root: Path, dtype: dict[str, str]) -> Path:
    """mergekit's recipe of a method."""
    about = METHODS[method]
    models = ["a", "b", "c"][: about["models"]]
    recipe: dict[str, Any] = {
        "merge_method": about["merge_method"],
        "models": [{"model": str(root / n), "parameters": {"weight": 1.0}} for n in models],
        "parameters": about.get("theirs", {}),
        **dtype,
    }
    if about.get("base") or method == "slerp":
        recipe["base_model"] = str(root / ("base" if about.get("base") else "a"))
    file = root / "recipe.yml"
    file.write_text(json.dumps(recipe))
    return file


def ours_command(method: str, root: Path, out: Path, extra: list[str]) -> list[str]:
    """The command a user types."""
    about = EVERY[method]
    models = [str(root / n) for n in ["a", "b", "c"][: about["models"]]]
    base = ["--base", str(root / "base")] if about.get("base") else []
    program = str(Path(sys.executable).with_name("interfuse"))
    return [
        program,
        "merge",
        about.get("slug", method),
        *models,
        *base,
        *about.get("ours", []),
        *extra,
        "-q",
        "-o",
        str(out),
        "--force",
    ]


def speed(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Times and results of some methods at one size."""
    peer = mergekit_command(args.mergekit)
    if peer is None:
        print("mergekit is not here (MERGEKIT or --mergekit names its command): only the plain copy is compared with")
    with sources(args.gigabytes, args.keep) as root:
        for method in (args.methods or ",".join(METHODS)).split(","):
            about = METHODS[method]
            names = [*(["base"] if about.get("base") else []), *["a", "b", "c"][: about["models"]]]
            files = [str(root / n / "model.safetensors") for n in names]
            commands = {"copy": [sys.executable, "-c", COPY, str(root / "copy"), *files],
                        "ours": ours_command(method, root, root / "ours", ["--workers", str(args.threads)])}  # fmt: skip
            often = {"copy": args.runs, "ours": args.runs}
            if peer and not args.without_peer:
                recipe = recipe_of(method, root, {"dtype": "bfloat16"})
                commands["mergekit"] = [peer, str(recipe), str(root / "theirs"), "--no-copy-tokenizer"]
                often["mergekit"] = args.peer_runs or min(args.runs, SLOW.get(method, args.runs))
            times: dict[str, list[float]] = {n: [] for n in commands}
            works: dict[str, list[float]] = {n: [] for n in commands}
            peaks = dict.fromkeys(commands, 0.0)
            for run in range(-1, args.runs):  # the first round warms the file cache
                for name, words in commands.items():
                    if run < 0 and (args.cold or name == "mergekit"):
                        continue
                    if run >= often[name]:
                        continue
                    old = root / ("theirs" if name == "mergekit" else name)  # the last result goes outside the clock
                    old.unlink() if old.is_file() else shutil.rmtree(old, ignore_errors=True)
                    if args.cold:
                        forget(files)
                    seconds, work, peak = timed(words, args.threads)
                    peaks[name] = max(peaks[name], peak)
                    if run >= 0:
                        times[name].append(seconds)
                        works[name].append(work)
            row: dict[str, Any] = {"sources": len(names), "bytes each": os.stat(files[0]).st_size,
                                   "seconds": {n: middle(t) for n, t in times.items()},
                                   "processor seconds": {n: middle(t) for n, t in works.items()}, "peak private MB": peaks}  # fmt: skip
            ours = statistics.median(times["ours"])
            row["ours over copy"] = ours / statistics.median(times["copy"])
            if "mergekit" in commands:
                row["mergekit over ours"] = statistics.median(times["mergekit"]) / ours
                row["mergekit over ours, processor seconds"] = statistics.median(works["mergekit"]) / statistics.median(
                    works["ours"]
                )
                row["beside mergekit in bfloat16"] = equal(root / "ours", root / "theirs")
                if args.exact:
                    recipe = recipe_of(method, root, {"dtype": "float32", "out_dtype": "bfloat16"})
                    timed([str(peer), str(recipe), str(root / "exact"), "--no-copy-tokenizer"], args.threads)
                    row["beside mergekit in float32"] = equal(root / "ours", root / "exact")
                    account(found, args.gigabytes, method, root)
                    shutil.rmtree(root / "exact", ignore_errors=True)
            key = f"{args.gigabytes:g} GB, {args.threads} thread{'s' * (args.threads > 1)}, {'cold' if args.cold else 'warm'}"
            found.setdefault("speed", {}).setdefault(key, {})[method] = row
            save("merge-speed", found)
            print(key, method, json.dumps(row), flush=True)


def account(found: dict[str, Any], gigabytes: float, method: str, root: Path) -> None:
    """Every difference between ``ours`` and ``exact`` by its cause, where there is a rule for the method."""
    began = time.perf_counter()
    if (causes := explain(method, root, root / "ours", root / "exact")) is not None:
        found.setdefault("equality in float32", {}).setdefault(f"{gigabytes:g} GB", {})[method] = causes
        print(method, json.dumps(causes), f"{time.perf_counter() - began:.0f} s", flush=True)


def equality(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Both results, mergekit computing in float32, and why they differ; no times."""
    peer = mergekit_command(args.mergekit)
    if peer is None:
        print("mergekit is not here (MERGEKIT or --mergekit names its command): there is nothing to compare with")
        return
    with sources(args.gigabytes, args.keep) as root:
        for method in (args.methods or ",".join(EXPLAINED)).split(","):
            for old in ("ours", "exact"):
                shutil.rmtree(root / old, ignore_errors=True)
            recipe = recipe_of(method, root, {"dtype": "float32", "out_dtype": "bfloat16"})
            timed([peer, str(recipe), str(root / "exact"), "--no-copy-tokenizer"], args.threads)
            timed(ours_command(method, root, root / "ours", []), args.threads)
            account(found, args.gigabytes, method, root)
            save("merge-speed", found)
            shutil.rmtree(root / "exact", ignore_errors=True)


def memory(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Peak private memory of every method by default, and of merges that may not have more than 1 GB."""
    goal = 512 + 3 * 2 * 4  # MB: three models, blocks of 2 MB of float32 with what is computed of them
    rows: dict[str, Any] = found.get("memory", {}).get(f"{args.gigabytes:g} GB") or {"default": {}, "limit of 1 GB": {}}
    rows["goal MB"] = goal
    with sources(args.gigabytes, args.keep) as root:
        rows["bytes each"] = os.stat(root / "a" / "model.safetensors").st_size
        for method in (args.methods or ",".join(n for n, about in EVERY.items() if not about.get("decomposes"))).split(
            ","
        ):
            seconds, _, peak = timed(ours_command(method, root, root / "ours", []), args.threads)
            rows["default"][method] = peak
            print(method, peak, f"{seconds:.1f} s", flush=True)
            try:
                seconds, _, peak = timed(
                    ours_command(method, root, root / "ours", ["--max-memory", LIMITED.get(method, "0.3")]),
                    args.threads,
                    limit=10**9,
                )
                rows["limit of 1 GB"][method] = {"seconds": seconds, "peak private MB": peak}
            except RuntimeError as error:
                rows["limit of 1 GB"][method] = {"failed": str(error)[-300:]}
            print(method, rows["default"][method], rows["limit of 1 GB"][method], flush=True)
            found.setdefault("memory", {})[f"{args.gigabytes:g} GB"] = rows
            save("merge-speed", found)


def plan(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Seconds from opened headers to a planned merge of 50,000 tensors."""
    from safetensors.torch import save_file

    from interfuse.core.ctx import Ctx
    from interfuse.core.method import load
    from interfuse.core.rooms import load_room, prepare
    from interfuse.merge.prepare import prepared

    root = Path(tempfile.mkdtemp(prefix="merge-plan-"))
    try:
        for name in "ab":
            (root / name).mkdir()
            state = {f"model.layers.{i // 50}.mlp.experts.{i % 50}.weight": torch.ones(2, 2) for i in range(50_000)}
            save_file(state, root / name / "model.safetensors", metadata={"format": "pt"})
            (root / name / "config.json").write_text(
                json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
            )
        seconds = []
        for _ in range(args.runs):
            call = prepare(
                load_room("merge"), load("merge/linear"), {"models": [str(root / "a"), str(root / "b")]}, Ctx()
            )
            began = time.perf_counter()
            with prepared(call) as done:
                assert len(done.outputs) == 50_000
            seconds.append(time.perf_counter() - began)
        found["plan of 50,000 tensors, seconds"] = middle(seconds)
        print("plan", found["plan of 50,000 tensors, seconds"])
    finally:
        shutil.rmtree(root, ignore_errors=True)


def svd(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Decompositions of task matrices as the methods ask for them, one thread, in processor seconds: the whole matrix by LAPACK beside the
    same piece by piece."""
    from interfuse.data.weights import Weights
    from interfuse.kit.decompose import short_side, times, whitening

    torch.set_num_threads(1)
    rows: dict[str, Any] = {}

    def best(work: Any, times: int = 1) -> tuple[float, Any]:
        seconds, result = [], None
        for _ in range(times):
            began = time.process_time()
            result = work()
            seconds.append(time.process_time() - began)
        return min(seconds), result

    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2048, 2048, dtype=dtype)
        rows[f"matrix product {str(dtype)[6:]}, GFLOP/s"] = 2 * 2048**3 / best(lambda x=x: x @ x, 5)[0] / 1e9
    for m, n in ((1024, 1024), (1024, 2816), (2048, 8192), (32000, 2048)):
        generator = torch.Generator().manual_seed(0)
        # a low-rank change under noise, as fine-tuning leaves it
        a = torch.randn(m, 64, generator=generator) @ torch.randn(64, n, generator=generator) / 8 + torch.randn(
            m, n, generator=generator
        )
        flat, k, step = Weights.from_state_dict({"a": a}).source("a"), min(m, n), 256 * n
        rank = k // 3
        flops = (
            6 * max(m, n) * k * k + 20 * k**3
        )  # Golub and Van Loan 2013, figure 8.6.1: singular values and thin vectors

        def made(factors: list[torch.Tensor], flat=flat, step=step, size=m * n) -> list[torch.Tensor]:
            return [times(flat, factors, at, min(at + step, size)).float() for at in range(0, size, step)]

        def whole(a=a) -> tuple[torch.Tensor, torch.Tensor]:
            u, s, v = torch.linalg.svd(a.double(), full_matrices=False)
            return u @ v, s

        def level(how: str, flat=flat, made=made) -> list[torch.Tensor]:
            return made([whitening(*short_side(flat, how))])

        def leading(flat=flat, made=made, rank=rank) -> list[torch.Tensor]:
            vectors = short_side(flat, "randomised", rank, 1)[1]
            return made([vectors, vectors.T])

        slow, (polar, s) = best(whole)
        one: dict[str, Any] = {"whole, seconds": slow, "whole, GFLOP/s": flops / slow / 1e9}
        for how in ("exact", "gram"):
            seconds, blocks = best(lambda how=how, level=level: level(how))
            one |= {f"{how}, seconds": seconds, f"{how}, largest error of U V^T": float((torch.cat(blocks) - polar.view(m, n)).abs().max())}  # fmt: skip
        optimal = float((s[rank:] ** 2).sum().sqrt())
        quick, blocks = best(leading)
        one |= {"randomised at a third of the rank, seconds": quick, "its residue over the best possible": float(torch.linalg.matrix_norm(a.double() - torch.cat(blocks))) / optimal}  # fmt: skip
        rows[f"{m} x {n}"] = one
        print(m, n, json.dumps(one), flush=True)
        found["svd, one thread"] = rows
        save("merge-speed", found)


PAGE = Path(__file__).resolve().parents[1] / "docs" / "speed.md"
MARKS = ("<!-- figures: written by benchmarks/merge_speed.py --part page -->", "<!-- end of figures -->")


def shown_equal(found: dict[str, Any], size: str) -> list[str]:
    """The methods whose result at this size is known to be mergekit's: every value equal where mergekit computes in float32 (or in
    bfloat16 already), or every difference accounted for. A ratio of seconds says nothing where the results may be others."""
    accounted = found.get("equality in float32", {}).get(size, {})
    known = [method for method, why in accounted.items() if why["unexplained"] == 0]
    for key, rows in found.get("speed", {}).items():
        if key.startswith(f"{size},"):
            known += [m for m, row in rows.items() if any(row.get(f"beside mergekit in {t}", {}).get("equal") == 1.0 for t in ("bfloat16", "float32"))]  # fmt: skip
    return sorted(set(known))


def goals(rows: dict[str, Any], equal_ones: list[str]) -> str:
    """Which goals hold in one table, which do not, and which rows are no race because the results are not shown to be equal.

    Args:
        rows: the table's. equal_ones: methods whose result is known to be mergekit's at this size (:func:`shown_equal`).
    """
    held, missed = [], []
    uneven = [m for m, row in rows.items() if "mergekit over ours" in row and m not in equal_ones]
    for method, row in rows.items():
        for name, limit, value, good in (
            (
                "times as fast as mergekit",
                None if method in uneven else GOALS.get(method),
                row.get("mergekit over ours"),
                1,
            ),
            ("of the copy's time", COPY_GOAL.get(method), row["ours over copy"], -1),
        ):
            if limit is not None and value is not None:
                told = f"{method} {value:.2f} {name} (goal {limit})"
                bound = row.get("mergekit over ours", 0) * row["ours over copy"]
                if good > 0 and bound < limit:
                    told += f", where the copy is {bound:.1f} times as fast as mergekit"
                (held if (value - limit) * good >= 0 else missed).append(told)
    told = f"All {len(held)} goals of this table hold." if not missed else (
        f"{len(held)} of {len(held) + len(missed)} goals of this table hold; not: {'; '.join(missed)}.")  # fmt: skip
    if uneven:
        told += f" Not counted, as the two results are not shown to be the same at this size: {', '.join(uneven)} beside mergekit."
    return told


def causes(found: dict[str, Any]) -> list[str]:
    """Why values differ from mergekit's where both compute in float32, as lines of the page."""
    told = {
        f"{n}, {size}": why for size, rows in found.get("equality in float32", {}).items() for n, why in rows.items()
    }
    if not told:
        return []
    lines = ["**Every difference to mergekit in float32, by its cause** (`--part equality`; `benchmarks/merge_equality.py` says how causes are found)", "",
             "| merge | values | different | cause | values with this cause | without a cause |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name, why in told.items():
        first, left = f"| {name} | {why['elements']:,} | {why['different']:,} ", f"{why['unexplained']:,}"
        for number, (cause, count) in enumerate(why["causes"].items()):
            lines.append(f"{first if not number else '| | | '}| {cause} | {count:,} | {left if not number else ''} |")
    lines.append("")
    for name, why in told.items():
        more = [f"{n}: {v:,}" if isinstance(v, int) or float(v).is_integer() else f"{n}: {v:.1e}" for n, v in why.items()
                if n not in ("elements", "different", "causes", "unexplained")]  # fmt: skip
        lines += [f"- {name}: " + "; ".join(more) + "."]
    return [*lines, ""]


def page(found: dict[str, Any]) -> str:
    """The figures as the tables of the documentation."""
    lines: list[str] = []
    about = found.get("machine", {})
    lines += [
        f"Measured on {about.get('cores', '?')} processors ({about.get('cpu', 'unknown')}), Python {about.get('python', '?')}, torch {about.get('torch', '?')}.",
        "",
    ]
    for note in found.get("notes", []):
        lines += [note, ""]
    for key, rows in found.get("speed", {}).items():
        lines += [f"**{key}** (medians in seconds, n = number of runs)", "", "| method | files | copy | Interfuse | mergekit | over the copy | mergekit over ours | the same in processor seconds | equal values, mergekit in bfloat16 | in float32 |",
                  "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for method, row in rows.items():
            told = {n: f"{v['median']:.1f} (n {v['n']})" for n, v in row["seconds"].items()}
            same = [
                f"{row[name]['equal']:.2%}" if (name := f"beside mergekit in {t}") in row else "-"
                for t in ("bfloat16", "float32")
            ]
            faster = f"{row['mergekit over ours']:.1f}" if "mergekit over ours" in row else "-"
            faster += f" (goal {GOALS[method]})" if method in GOALS else ""
            over = f"{row['ours over copy']:.1f}" + (f" (goal {COPY_GOAL[method]})" if method in COPY_GOAL else "")
            work = f"{row['mergekit over ours, processor seconds']:.1f}" if "mergekit over ours" in row else "-"
            lines.append(f"| {method} | {row['sources']} x {row['bytes each'] / 1e9:.2f} GB | {told['copy']} | {told['ours']} | {told.get('mergekit', '-')} | "
                         f"{over} | {faster} | {work} | {same[0]} | {same[1]} |")  # fmt: skip
        lines += ["", goals(rows, shown_equal(found, key.split(",")[0])), ""]
    if whole := found.get("speed", {}).get("1.3 GB, 2 threads, warm"):
        told = ", ".join(f"{method} {1 / row['ours over copy']:.0%}" for method, row in whole.items())
        lines += [f"Share of the copy's speed at 1.3 GB, 2 threads, warm: {told}. What was aimed at is 70% where models are only summed (linear, "
                  "task-arithmetic, slerp) and 35% for ties and sce.", ""]  # fmt: skip
    lines += causes(found)
    for key, rows in found.get("memory", {}).items():
        lines += [f"**Memory, sources of {key}** (peak of private pages in MB; the goal is {rows['goal MB']})", "", "| method | by default | under a hard limit of 1 GB (RLIMIT_DATA), `--max-memory 0.3` (lore 0.31) |", "|---|---|---|"]  # fmt: skip
        for method, peak in rows["default"].items():
            tight = rows["limit of 1 GB"][method]
            words = (
                f"{tight['peak private MB']:.0f} MB, {tight['seconds']:.1f} s"
                if "seconds" in tight
                else ("refused: " if "input.limit" in tight["failed"] else "failed: ")
                + tight["failed"].strip().splitlines()[0][:100]
            )
            about = EVERY.get(method, {})
            told = f"{about.get('slug', method)} `{' '.join(about['ours'])}`" if about.get("decomposes") else method
            lines.append(f"| {told} | {peak:.0f} | {words} |")
        lines.append("")
    if planned := found.get("plan of 50,000 tensors, seconds"):
        lines += [
            f"**Planning** a merge of two models of 50,000 tensors: {planned['median']:.2f} s (n {planned['n']}).",
            "",
        ]
    if rows := found.get("svd, one thread"):
        peaks = {k: v for k, v in rows.items() if not isinstance(v, dict)}
        lines += ["**Decompositions**, one thread, processor seconds. " + "; ".join(f"{k}: {v:.0f}" for k, v in peaks.items()) + ". Whole: the matrix in "
                  "float64 by LAPACK, and U V^T; its GFLOP/s are nominal: the count is that of Golub and Van Loan's algorithm (6 m k^2 + 20 k^3), the "
                  "library's needs fewer operations, so that the figure can exceed the product's. The others read it piece by piece and hold "
                  "matrices of the short side alone; they are what `svd: exact`, `gram` and `randomised` do.", "",
                  "| matrix | whole, nominal | exact | its largest error of U V^T (written in float32) | gram | its largest error of U V^T | randomised, a third of the rank | its residue over the best possible |",
                  "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, row in rows.items():
            if isinstance(row, dict):
                lines.append(f"| {name} | {row['whole, seconds']:.2f} s, {row['whole, GFLOP/s']:.1f} GFLOP/s | {row['exact, seconds']:.2f} s | {row['exact, largest error of U V^T']:.1e} | "
                             f"{row['gram, seconds']:.2f} s | {row['gram, largest error of U V^T']:.1e} | "
                             f"{row['randomised at a third of the rank, seconds']:.2f} s | {row['its residue over the best possible']:.4f} |")  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def write_page(found: dict[str, Any]) -> None:
    """Puts the tables into docs/speed.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{page(found).rstrip()}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["all", "speed", "equality", "memory", "plan", "svd", "page"], default="all")
    parser.add_argument("--gigabytes", type=float, default=1.3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--peer-runs", type=int, default=0, help="runs of mergekit; 0 is as many, fewer where it takes minutes"
    )
    parser.add_argument("--without-peer", action="store_true", help="leave mergekit out")
    parser.add_argument("--exact", action="store_true", help="compare once with mergekit computing in float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="sources are read from the disk")
    parser.add_argument("--methods", help="names with commas between; all, when left out")
    parser.add_argument("--mergekit", help="path of mergekit-yaml")
    parser.add_argument("--keep", type=Path, help="keep the sources in this folder for the next call")
    args = parser.parse_args()
    file = RESULTS / "merge-speed.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    found = {k: v for k, v in found.items() if k not in ("machine", "commit")}
    found["what"] = "wall seconds of whole processes, start-up included"
    for name, part in (("svd", svd), ("plan", plan), ("memory", memory), ("speed", speed), ("equality", equality)):
        if args.part in ("all", name):
            part(args, found)
            save("merge-speed", found)
    if args.part in ("all", "page"):
        write_page(json.loads(file.read_text()))
    print(file)


if __name__ == "__main__":
    main()
