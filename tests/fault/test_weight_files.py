"""Hostile and torn weight files, kills, full disks: a coded error or the right bytes, never a crash, hang or half model."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from interfuse.core.errors import InterfuseError
from interfuse.data import file_maps, weight_writer
from interfuse.data.formats.safetensors import MAX_HEADER
from interfuse.data.weight_writer import WeightWriter
from interfuse.data.weights import INDEX, SINGLE, HeldTensor, Weights
from interfuse.kit.streaming import Job, Journal, stream_merge


def file_of(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(begin, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


GOOD = {"a": entry(0, 8), "b": entry(8, 24)}
DATA = bytes(24)
ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
ATTACKS = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "header of 100 MB + 1": file_of(b"{}", length=MAX_HEADER + 1),
    "header of 2**64 - 1": file_of(b"{}", length=2**64 - 1),
    "header longer than the file": file_of(b"{}", length=3),
    "header of length 0": file_of(b"", b"\0" * 8),
    "header not an object": file_of(b"[1, 2]"),
    "header with a byte order mark": file_of(b"\xef\xbb\xbf{}"),
    "header not UTF-8": file_of(b'{"\xff":' + ONE + b"}", bytes(4)),
    "header cut short": file_of(b'{"a":', bytes(4)),
    "header with text after it": file_of(b"{} {}"),
    "duplicate names": file_of(b'{"a":' + ONE + b',"a":' + ONE + b"}", bytes(4)),
    "duplicate names by escape": file_of(b'{"a":' + ONE + b',"\\u0061":' + ONE + b"}", bytes(4)),
    "duplicate keys in an entry": file_of(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "lone surrogate": file_of(b'{"\\ud800":' + ONE + b"}", bytes(4)),
    "deep nesting": file_of(b'{"a":' + b"[" * 100_000),
    "NaN": file_of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "huge integer": file_of(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', bytes(4)),
    "huge float": file_of(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4)),
    "negative begin": file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
    "negative shape": file_of({"a": entry(0, 4, shape=[-1, -1])}, bytes(4)),
    "end before begin": file_of({"a": {"dtype": "F32", "shape": [0], "data_offsets": [8, 0]}}, bytes(8)),
    "overlap": file_of({"a": entry(0, 8), "b": entry(4, 24)}, DATA),
    "same bytes twice": file_of({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
    "hole": file_of({"a": entry(0, 8), "b": entry(12, 24)}, DATA),
    "hole at the start": file_of({"b": entry(8, 24)}, DATA),
    "trailing bytes": file_of(GOOD, DATA + b"x"),
    "end beyond the file": file_of({"a": entry(0, 8), "b": entry(8, 2**40)}, DATA),
    "offsets near 2**63": file_of({"a": entry(2**63 - 8, 2**63 - 4)}, DATA),
    "offsets above 2**64": file_of({"a": entry(2**64, 2**64 + 4)}, DATA),
    "wrong size for the dtype": file_of({"a": entry(0, 8, "F16")}, bytes(8)),
    "shape overflowing 64 bits": file_of({"a": entry(0, 0, shape=[2**32, 2**32])}),
    "shape overflowing to 0": file_of({"a": entry(0, 0, shape=[2**62, 4])}),
    "a thousand dimensions": file_of({"a": entry(0, 4, shape=[1] * 1000)}, bytes(4)),
    "unknown dtype": file_of({"a": entry(0, 4, "F33")}, bytes(4)),
    "dtype not text": file_of({"a": entry(0, 4, ["F32"])}, bytes(4)),
    "boolean shape": file_of(b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', bytes(4)),
    "fraction in shape": file_of({"a": entry(0, 4, shape=[1.0])}, bytes(4)),
    "three offsets": file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(8)),
    "missing key": file_of({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "extra key": file_of({"a": {**entry(0, 4), "code": "x"}}, bytes(4)),
    "entry not an object": file_of({"a": 3}),
    "metadata not text": file_of({"__metadata__": {"format": 1}}),
    "metadata not an object": file_of({"__metadata__": "pt"}),
    "a zip (torch pickle) in disguise": b"PK\x03\x04" + bytes(100),
    "a pickle in disguise": b"\x80\x04cposix\nsystem\n." + bytes(100),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_quickly(tmp_path, name):
    path = tmp_path / SINGLE
    path.write_bytes(ATTACKS[name])
    seconds = []
    for place in (path, tmp_path, path):
        begun = time.perf_counter()
        with pytest.raises(InterfuseError) as caught:
            Weights.open(place)
        seconds.append(time.perf_counter() - begun)
        assert caught.value.code == "input.format"
        assert SINGLE in caught.value.where
        assert len(str(caught.value)) < 2000
    assert min(seconds) < 0.010


def test_the_good_file_of_the_corpus_opens(tmp_path):
    (tmp_path / SINGLE).write_bytes(file_of(GOOD, DATA))
    with Weights.open(tmp_path) as weights:
        assert list(weights) == ["a", "b"]


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_pickles_are_never_opened(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"pytorch_model{suffix}"
    marker = tmp_path / "executed"
    path.write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    path.chmod(0)  # for any user but root, opening would fail differently
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, *rest, **more: opened.append(str(name)) or real(name, *rest, **more))
    for place in (path, tmp_path):
        with pytest.raises(InterfuseError, match="save_pretrained") as caught:
            Weights.open(place)
        assert caught.value.code == "unsafe.pickle"
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": path.name}}))
    with pytest.raises(InterfuseError) as caught:
        Weights.open(tmp_path)
    assert caught.value.code == "unsafe.pickle"
    assert not marker.exists()
    assert str(path) not in opened


OUTSIDE = ["../s.safetensors", "x/../../s.safetensors", "/etc/s.safetensors", "C:\\s.safetensors", "C:s.safetensors"]
OUTSIDE += ["..\\s.safetensors", "\\\\host\\share\\s.safetensors", "a\0b.safetensors", "", "n" * 5000]


@pytest.mark.parametrize("name", OUTSIDE)
def test_index_cannot_leave_the_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "s.safetensors").write_bytes(file_of(GOOD, DATA))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InterfuseError) as caught:
        Weights.open(folder)
    assert caught.value.code == "unsafe.path"


def test_links_cannot_leave_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "s.safetensors").write_bytes(file_of(GOOD, DATA))
    (folder / SINGLE).symlink_to(tmp_path / "s.safetensors")
    with pytest.raises(InterfuseError) as caught:
        Weights.open(folder)
    assert caught.value.code == "unsafe.path"
    (folder / SINGLE).unlink()
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "out").symlink_to(tmp_path)
    for name in ("loop.safetensors", "out/s.safetensors"):
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InterfuseError) as caught:
            Weights.open(folder)
        assert caught.value.code in ("unsafe.path", "input.missing")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"weight_map": {"a": "missing.safetensors"}}', "input.missing"),
        ('{"weight_map": {"a": 3}}', "input.format"),
        ('{"weight_map": {}}', "input.empty"),
        ('{"weight_map": {"a": "s.safetensors", "a": "s.safetensors"}}', "input.format"),
        ('{"weight_map": {"zzz": "s.safetensors"}}', "input.format"),
        ("[1]", "input.format"),
        ("{", "input.format"),
        ("", "input.format"),
        ("[" * 100_000, "input.format"),
    ],
)
def test_bad_index_is_refused(tmp_path, text, code):
    (tmp_path / "s.safetensors").write_bytes(file_of(GOOD, DATA))
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(InterfuseError) as caught:
        Weights.open(tmp_path)
    assert caught.value.code == code


def test_missing_and_odd_places(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    cases = {"none": "input.missing", "empty": "input.missing", "notes.txt": "input.format"}
    for name, code in {**cases, "pipe.safetensors": "input.format"}.items():
        with pytest.raises(InterfuseError) as caught:
            Weights.open(tmp_path / name)
        assert caught.value.code == code


def test_every_truncation_is_caught(tmp_path):
    whole = file_of(GOOD, DATA)
    path = tmp_path / SINGLE
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InterfuseError) as caught:
            Weights.open(path)
        assert caught.value.code == "input.format"


def test_truncation_after_opening_is_an_error_not_a_crash(tmp_path):
    path = tmp_path / SINGLE
    path.write_bytes(file_of({"a": entry(0, 400_000)}, bytes(400_000)))
    with Weights.open(path) as weights:
        os.truncate(path, 5000)
        with pytest.raises(InterfuseError) as caught:
            weights.read("a")
        assert caught.value.code == "input.format"
        with pytest.raises(InterfuseError):
            weights.tensor("a", copy=True)


@pytest.mark.skipif(sys.platform != "linux", reason="files are mapped on Linux")
@pytest.mark.parametrize("seen", [False, True])
def test_a_mapped_file_that_is_cut_is_an_error_not_a_crash(seen, tmp_path):
    path, n = tmp_path / SINGLE, 200_000
    path.write_bytes(file_of({"a": {"dtype": "BF16", "shape": [n], "data_offsets": [0, 2 * n]}}, bytes(2 * n)))
    with Weights.open(path) as weights:
        if seen:
            assert weights.read("a").numel() == n
            assert weights.maps(weights["a"])
        os.truncate(path, 5000)  # amid a page: the rest of it would read as zeros
        with pytest.raises(InterfuseError) as caught:
            weights.read("a", 0, 4000)
        assert caught.value.code == "input.format"
        assert weights.read("a", 0, 1000).numel() == 1000


@pytest.mark.parametrize("known", [True, False])
def test_what_cannot_be_looked_at_is_read(known, tmp_path, monkeypatch):
    path = tmp_path / SINGLE
    path.write_bytes(
        file_of({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}, b"\x80\x3f\x00\x40\x40\x40")
    )
    monkeypatch.setattr(file_maps, "_madvise", lambda: (lambda address, length, advice: -1) if known else None)
    with Weights.open(path) as weights:
        assert weights.maps(weights["a"]) is known
        assert weights.mapped(weights["a"], 0, 3) is None
        assert weights.read("a", 1).tolist() == [2.0, 3.0]
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(InterfuseError) as caught:
            weights.read("a")
        assert caught.value.code == "input.format"


def test_ten_thousand_bit_flips_in_the_header(tmp_path):
    whole = bytearray(file_of({"__metadata__": {"format": "pt"}, **GOOD}, DATA))
    header, path = len(whole) - len(DATA), tmp_path / SINGLE
    path.write_bytes(whole)
    rng = random.Random(4)
    opened, codes = 0, set()
    for _ in range(10_000):
        torn = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            torn[rng.randrange(header)] ^= 1 << rng.randrange(8)
        with open(path, "r+b") as file:
            file.write(torn)
        try:
            with Weights.open(path) as weights:
                opened += 1
                for name in weights:  # another name or type of the same size may be readable, but must be so
                    assert weights.tensor(name).shape == weights[name].shape
                assert weights.nbytes == len(DATA)
        except InterfuseError as error:
            codes.add(error.code)
    assert codes == {"input.format"}
    assert 0 < opened < 5000


MERGES = """
import os, signal, sys, time
import torch
from pathlib import Path
from interfuse.data.weights import Weights
from interfuse.data.weight_writer import WeightWriter
from interfuse.kit.counter_random import tensor_key, uniform
from interfuse.kit.streaming import Job, Journal, stream_merge

def dare(x, block):
    time.sleep(0.001)
    keep = uniform(tensor_key(3, "b", block.name), block.start, block.stop) < 0.5
    return x[0].add_(x[1].sub_(x[0]).mul_(keep), alpha=2.0)

def merge(sources, out, begun):
    models = [Weights.open(sources / f"{m}.safetensors") for m in "ab"]
    jobs = [Job(n, tuple(m.source(n) for m in models), dare) for n in models[0]]
    layout = {n: (torch.bfloat16, i.shape) for n, i in models[0].items()}
    with Journal(out / "journal.jsonl", "k") as journal:
        os.write(begun, b"x")
        with WeightWriter(out, layout, max_shard_bytes=4_000_000, resumable=True) as writer:
            stats = stream_merge(jobs, writer, workers=2, block_bytes=1 << 17, journal=journal)
    return stats.resumed

for line in sys.stdin:  # one merge per line, in a child of this process, which itself starts no threads
    sources, out, seconds = line.split()
    reading, begun = os.pipe()
    child = os.fork()
    if child == 0:
        code = 101
        try:
            code = merge(Path(sources), Path(out), begun)
        finally:
            os._exit(code)
    os.close(begun)
    os.read(reading, 1)
    os.close(reading)
    start = time.monotonic()
    if float(seconds) >= 0:
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, time.monotonic() - start, flush=True)
"""


def start(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def weight_bytes(folder):
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.name.startswith("model")}


def test_killed_merges_resume_to_the_same_bytes(tmp_path):
    rng = torch.Generator().manual_seed(0)
    for model in "ab":
        state = {f"t{i:02}": torch.randn(60_000 + i, generator=rng).bfloat16() for i in range(60)}
        with WeightWriter(tmp_path / model, {n: (t.dtype, tuple(t.shape)) for n, t in state.items()}) as writer:
            for name, tensor in state.items():
                writer.write(name, 0, tensor)
        (tmp_path / model / SINGLE).rename(tmp_path / f"{model}.safetensors")
    with start(MERGES) as process:

        def merge(out, seconds=-1.0):
            """Exit status (the number of tensors taken over; negative if killed) and time."""
            process.stdin.write(f"{tmp_path} {out} {seconds}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, process.stderr.read()
            return int(line.split()[0]), float(line.split()[1])

        status, took = merge(tmp_path / "whole")
        assert status == 0
        expected = weight_bytes(tmp_path / "whole")
        assert len(expected) == 3
        moments, kills, resumed, out = random.Random(1), 0, [], tmp_path / "killed"
        while kills < 20:
            status, _ = merge(out, moments.random() * took)
            assert status <= 60  # 101: an exception
            if status == -signal.SIGKILL:
                kills += 1
                assert_no_half_model(out, expected)
                if moments.random() < 0.5:
                    continue  # killed again while resuming
            status, _ = merge(out)
            assert 0 <= status <= 60
            resumed.append(status)
            assert weight_bytes(out) == expected
            shutil.rmtree(out)
        process.stdin.close()
    assert len([n for n in resumed if n > 0]) > 3  # the journal was of use


def assert_no_half_model(folder, expected):
    """Either all files are complete, or the folder does not open."""
    try:
        Weights.open(folder).close()
    except InterfuseError:
        return
    assert weight_bytes(folder) == expected


def small_merge(folder, key="k", journal=None, stop_after=None):
    source = Weights.from_state_dict({f"t{i}": torch.full((1000,), float(i)) for i in range(5)})
    calls = []

    def function(x, block):
        calls.append(block.name)
        if stop_after is not None and len(calls) > stop_after:
            raise KeyboardInterrupt
        return x[0] + 1

    layout = {name: (torch.float32, info.shape) for name, info in source.items()}
    with Journal(folder / "journal", key) as notes, WeightWriter(folder, layout, resumable=True) as writer:
        stats = stream_merge([Job(n, (source.source(n),), function) for n in source], writer, workers=1, journal=notes)
    return stats, calls


def test_resume_verifies_what_the_journal_says(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small_merge(tmp_path, stop_after=3)
    with open(tmp_path / SINGLE, "r+b") as file:  # damage t1, which the journal calls done
        file.seek(-4 * 3500, os.SEEK_END)
        file.write(b"damage")
    with open(tmp_path / "journal", "a") as file:
        file.write('{"tensor": "t4", "sha2')  # a torn line
    stats, calls = small_merge(tmp_path)
    assert (stats.resumed, calls) == (2, ["t1", "t3", "t4"])
    assert list(stats.checksum) == ["t0", "t1", "t2", "t3", "t4"]
    with Weights.open(tmp_path) as weights:
        assert [weights.read(f"t{i}").unique().tolist() for i in range(5)] == [[i + 1.0] for i in range(5)]


@pytest.mark.parametrize("change", ["key", "files", "journal"])
def test_nothing_is_taken_over_from_another_merge(tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        small_merge(tmp_path, stop_after=3)
    if change == "files":
        (tmp_path / SINGLE).unlink()
    if change == "journal":
        (tmp_path / "journal").write_bytes(b"\xff\0not json")
    stats, calls = small_merge(tmp_path, key="other" if change == "key" else "k")
    assert (stats.resumed, len(calls)) == (0, 5)


def test_second_process_is_kept_out(tmp_path):
    with Journal(tmp_path / "journal", "k"):
        with pytest.raises(InterfuseError) as caught:
            Journal(tmp_path / "journal", "k")
        assert caught.value.code == "output.busy"
    Journal(tmp_path / "journal", "k").close()


def write_zeros(folder, count, resumable=False):
    with WeightWriter(folder, {"a": (torch.float32, (count,))}, resumable=resumable) as writer:
        writer.write("a", 0, torch.zeros(count))


def test_too_little_room_is_told_before_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InterfuseError) as caught:
        write_zeros(tmp_path, 1000)
    assert caught.value.code == "output.space"
    assert list(tmp_path.iterdir()) == []


def test_file_size_limit_is_coded(tmp_path):
    code = (
        "import resource, sys, torch\n"
        "from interfuse.core.errors import InterfuseError\n"
        "from interfuse.data.weight_writer import WeightWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    WeightWriter(sys.argv[1], {'a': (torch.float32, (100_000,))})\n"
        "except InterfuseError as error:\n"
        "    print(error.code)\n"
    )
    process = start(code, tmp_path / "out")
    output, errors = process.communicate(timeout=100)
    assert output.split() == ["output.space"], errors
    assert list((tmp_path / "out").iterdir()) == []


def test_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(InterfuseError) as caught:
            write_zeros(disk, 100_000)
        assert caught.value.code == "output.space"
        real, weight_writer.shutil = weight_writer.shutil, Roomy()  # the check passes, the disk fills while writing
        try:
            with pytest.raises(InterfuseError) as caught:
                write_zeros(disk, 100_000)
        finally:
            weight_writer.shutil = real
        assert caught.value.code == "output.space"
        assert list(disk.iterdir()) == []
        with Journal(disk / "journal", "k") as journal:
            (disk / "fill").write_bytes(bytes(shutil.disk_usage(disk).free))
            with pytest.raises(InterfuseError) as caught:
                journal.record("tensor" * 1000, "0" * 64)
            assert caught.value.code == "output.space"
        (disk / "fill").unlink()
        write_zeros(disk, 1000)
        assert Weights.open(disk).read("a").tolist() == [0] * 1000
    finally:
        subprocess.run([shutil.which("umount"), disk], check=True)


class Roomy:
    """Says that there is room."""

    def disk_usage(self, path):
        return shutil._ntuple_diskusage(10**12, 0, 10**12)


CALLS = ["mkdir", "open", "posix_fallocate", "pwrite", "fsync", "replace"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", CALLS)
def test_every_writing_call_may_fail(tmp_path, monkeypatch, call, number):
    """Each call site fails once, in turn, until the merge gets through."""
    if sys.platform != "linux" and call == "posix_fallocate":
        pytest.skip("no such call here")
    real = getattr(os, call)
    layout = dict.fromkeys("abc", (torch.float32, (1000,)))
    codes, left = [], []
    for turn in range(100):
        folder, count = tmp_path / f"{turn}", [0]

        def fail(*arguments, turn=turn, count=count, **more):
            count[0] += 1
            if count[0] == turn + 1:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **more)

        monkeypatch.setattr(os, call, fail)
        try:
            with WeightWriter(folder, layout, max_shard_bytes=4000) as writer:
                for name in layout:
                    writer.write(name, 0, torch.ones(1000))
        except InterfuseError as error:
            codes.append(error.code)
            left += folder.iterdir() if folder.exists() else []
            continue
        finally:
            monkeypatch.setattr(os, call, real)
        with Weights.open(folder) as weights:
            assert all(weights.read(name).equal(torch.ones(1000)) for name in "abc")
        break
    else:
        pytest.fail("never got through")
    assert left == []
    assert set(codes) == {"output.space" if number == errno.ENOSPC else "output.write"}


def test_many_shards_need_no_raised_limit_of_open_files(tmp_path):
    """Above the soft limit of open files the limit is raised; above the hard one there is a coded error."""
    layout = {f"t{i}": (torch.float32, (1,)) for i in range(30)}
    with WeightWriter(tmp_path / "m", layout, max_shard_bytes=4) as writer:
        for name in layout:
            writer.write(name, 0, torch.ones(1))
    code = (
        "import resource, sys\n"
        "from interfuse.core.errors import InterfuseError\n"
        "from interfuse.data.weights import Weights\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, int(sys.argv[2])))\n"
        "try:\n"
        "    print(len(Weights.open(sys.argv[1])))\n"
        "except InterfuseError as error:\n"
        "    print(error.code, 'ulimit' in error.fix)\n"
    )
    for hard, expected in ((resource.getrlimit(resource.RLIMIT_NOFILE)[1], "30"), (25, "input.missing True")):
        process = start(code, tmp_path / "m", hard)
        output, errors = process.communicate(timeout=100)
        assert output.strip() == expected, errors


PEAK = """
import sys, torch
from interfuse.data.weights import Weights
from interfuse.data.weight_writer import WeightWriter
from interfuse.kit.streaming import Job, stream_merge

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

def merge(folder, count):
    layout = {f"t{i}": (torch.bfloat16, (1024, 1024)) for i in range(count)}
    with WeightWriter(f"{folder}/in", layout) as writer:
        for name in layout:
            writer.write(name, 0, torch.ones(1024 * 1024, dtype=torch.bfloat16))
    models = [Weights.open(f"{folder}/in") for _ in range(3)]
    jobs = [Job(n, tuple(m.source(n) for m in models), lambda x, b: x[0].add_(x[1]).add_(x[2])) for n in layout]
    with WeightWriter(f"{folder}/out", layout) as writer:
        stream_merge(jobs, writer, workers=2)

merge(sys.argv[1] + "/warm", 8)
before = status("VmRSS")
merge(sys.argv[1] + "/large", int(sys.argv[2]))
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path):
    peaks = []
    for count in (8, 128):  # 3 x 16 MB, 3 x 256 MB
        process = start(PEAK, tmp_path / str(count), count)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        peaks.append(int(output) / 1024)
        shutil.rmtree(tmp_path / str(count))
    assert max(peaks) < 64  # megabytes


@pytest.mark.skipif(sys.platform != "linux", reason="files are mapped on Linux")
def test_what_is_read_twice_is_held_only_where_reading_copies(tmp_path, monkeypatch):
    path, held, made = tmp_path / SINGLE, [], []
    path.write_bytes(
        file_of({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}, b"\x80\x3f\x00\x40\x40\x40")
    )

    def prepare(sources):
        held.append(isinstance(sources[0], HeldTensor))
        return float(sources[0].read(0, 3).sum())

    for mapped in (True, False):
        if not mapped:
            monkeypatch.setattr(file_maps, "_madvise", lambda: None)
        with Weights.open(path) as weights:
            writer = weight_writer.MemoryWriter({"a": (torch.float32, (3,))})
            job = Job("a", (weights.source("a"),), lambda x, block: x[0] * block.facts, prepare=prepare)
            stream_merge([job], writer)
            made.append(writer.state["a"].tolist())
    assert held == [False, True]
    assert made == [[6.0, 12.0, 18.0]] * 2
