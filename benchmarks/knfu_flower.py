"""KnFu over a network: a Flower server and three clients as processes of their own, beside the same rounds in one process.

Flower is not among this package's dependencies (it asks for older versions of packages used here), so it stands in an environment of
its own: ``python -m venv flower && flower/bin/pip install flwr`` and then ``knfu_flower.py --flower flower/bin``. That environment needs
this package too, and scikit-learn. With ``--namespaces`` (as root, with ``ip``) every process has a network of its own, connected by a bridge.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "knfu_flower_app")]

from knfu_clients import digits, round_of, softmax  # noqa: E402
from record import RESULTS, commit, machine  # noqa: E402

from interfuse.kit.federated import fuse  # noqa: E402

CLIENTS, ROUNDS, BETA = 3, 3, 10.0


def here(orders: list[list[int]]) -> tuple[list[Any], list[float]]:
    """The rounds in this process; the server sees the clients in the order in which the other one did. Accuracies on own tests."""
    shared, private, tests = digits(CLIENTS)
    weights, targets, rounds = [np.zeros((65, 10))] * CLIENTS, [None] * CLIENTS, []  # type: ignore[var-annotated]
    for order in orders:
        weights = [round_of(w, t, shared, p) for w, t, p in zip(weights, targets, private, strict=True)]
        fused = fuse({str(n): softmax(shared @ weights[n]) for n in order}, beta=BETA)
        for n in range(CLIENTS):
            targets[n] = fused.targets[fused.clients.index(str(n))]
        rounds.append(fused)
    right = [float((softmax(x @ w).argmax(1) == y.argmax(1)).mean()) for w, (x, y) in zip(weights, tests, strict=True)]
    return rounds, right


class Network:
    """Where the processes run: this machine's loopback, or a namespace each with addresses of its own on one bridge."""

    def __init__(self, apart: bool) -> None:
        self.apart, self.names = apart, []  # type: bool, list[str]
        if apart:
            self._ip("link", "add", "itf-br", "type", "bridge")
            self._ip("link", "set", "itf-br", "up")

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def place(self, number: int) -> tuple[list[str], str]:
        """How a command is begun there, and its address."""
        if not self.apart:
            return [], "127.0.0.1"
        name, address = f"itf-{number}", f"10.77.0.{number + 1}"
        self.names.append(name)
        self._ip("netns", "add", name)
        self._ip("link", "add", f"itf-v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        self._ip("link", "set", f"itf-v{number}", "master", "itf-br", "up")
        for words in (
            ["addr", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            self._ip("-n", name, *words)
        return ["ip", "netns", "exec", name], address

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)
        if self.apart:
            subprocess.run(["ip", "link", "del", "itf-br"], check=False)


def _logs(folder: Path) -> str:
    """Why it did not come to an end, as far as the processes say."""
    return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))


def over_network(tools: Path, folder: Path, apart: bool) -> tuple[list[Any], float]:
    """Starts server and clients, runs the app, and gives what the server fused in every round, and the seconds it took."""
    home = folder / "home"
    home.mkdir()
    env = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
           "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
           "PYTHONPATH": os.pathsep.join(p for p in (str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")) if p)}  # fmt: skip
    network, running = Network(apart), []  # type: Network, list[subprocess.Popen[bytes]]

    def start(where: list[str], name: str, *words: str) -> None:
        log = (folder / f"{name}.log").open("wb")
        running.append(
            subprocess.Popen(
                [*where, *words], env=env, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
            )
        )

    try:
        where, address = network.place(0)
        start(where, "server", str(tools / "flower-superlink"), "--insecure", "--disable-runtime-dependency-installation", "--host", address, "--port", "9091")  # fmt: skip
        time.sleep(4)
        for n in range(CLIENTS):
            there, own = network.place(n + 1)
            start(there, f"client-{n}", str(tools / "flower-supernode"), "--insecure", "--superlink", f"{address}:9091", "--host", own,
                  "--port", str(9094 + n), "--node-config", f"partition-id={n}")  # fmt: skip
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "net"\n\n[superlink.net]\naddress = "{address}:9091"\ninsecure = true\n'
        )
        out = folder / "rounds.json"
        began = time.monotonic()
        app = folder / "app"
        shutil.copytree(HERE / "knfu_flower_app", app, ignore=shutil.ignore_patterns("__pycache__"))
        text = (app / "pyproject.toml").read_text()
        (app / "pyproject.toml").write_text(text.replace('out = ""', f'out = "{out}"'))
        asked = [*where, str(tools / "flwr"), "run", str(app), "net"]
        while subprocess.run(asked, env=env, cwd=folder, stdout=sys.stderr).returncode:  # the server may not listen yet
            if time.monotonic() - began > 60:
                raise SystemExit(_logs(folder))
            time.sleep(2)
        while time.monotonic() - began < 300:
            time.sleep(0.5)
            rounds = json.loads(out.read_text()) if out.is_file() else []
            if len(rounds) == ROUNDS:
                return rounds, time.monotonic() - began
        raise SystemExit(_logs(folder))
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):  # each with the processes that it has started
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            time.sleep(2)
        network.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flower", type=Path, help="the folder with flower-superlink, flower-supernode and flwr")
    parser.add_argument("--namespaces", action="store_true", help="a network of its own for every process")
    chosen = parser.parse_args()
    found = shutil.which("flower-superlink")
    tools = chosen.flower or (Path(found).parent if found else None)
    if tools is None:
        print(
            "Flower is not installed: pip install flwr into an environment of its own, and name its bin folder by --flower"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        theirs, seconds = over_network(tools.resolve(), Path(folder), chosen.namespaces)
    ours, accuracy = here([r["clients"] for r in theirs])
    apart = [
        {"round": i + 1, "targets": float(np.abs(np.array(r["targets"]) - o.targets).max()), "weights": float(np.abs(np.array(r["weights"]) - o.weights).max())}
        for i, (r, o) in enumerate(zip(theirs, ours, strict=True))
    ]  # fmt: skip
    version = subprocess.run(
        [str(tools / "flwr"), "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    row = {
        "what": "KnFu's server as a Flower strategy over TCP, against the same rounds in one process: largest absolute differences",
        "network": "one namespace per process, veth pairs on a bridge" if chosen.namespaces else "processes on one machine, loopback",
        "clients": CLIENTS, "rounds": ROUNDS, "beta": BETA, "shared examples": 300, "failures": sum(r["failures"] for r in theirs),
        "largest difference": apart, "accuracy on own tests": accuracy, "seconds": round(seconds, 1), "flower": version,
        "machine": machine(), "commit": commit(),
    }  # fmt: skip
    (RESULTS / "knfu-flower.json").write_text(json.dumps(row, indent=2) + "\n")
    print(json.dumps(row, indent=2))
    worst = max(v for a in apart for v in (a["targets"], a["weights"]))
    if worst > 1e-12:
        raise SystemExit(f"the rounds differ by {worst}")


if __name__ == "__main__":
    main()
