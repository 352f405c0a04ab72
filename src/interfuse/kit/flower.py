"""Clients on several machines: the server of KnFu as a strategy of Flower (the optional package ``flwr``).

A client's ``fit`` trains on its private examples, sends its class probabilities on the shared examples as its one array [m, C], and
takes its personal targets from the next round's parameters to tune on. ``flwr`` is no extra of this package: it asks for older
versions of packages used here (1.42: rich, typer, packaging, starlette, uvicorn), so it stands in an environment of its own;
``benchmarks/knfu_flower_app`` is an app that runs this strategy over a network. The strategy holds no data and no model: it calls
:func:`interfuse.kit.federated.fuse`. In a simulation on one machine use ``distill/knfu`` instead.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from interfuse.core.errors import InterfuseError
from interfuse.kit.federated import Fused, fuse


def strategy(*, least: int = 2, **options: Any) -> Any:
    """A ``flwr.server.strategy.Strategy`` that answers every client with targets of its own.

    Args:
        least: clients to wait for before a round begins. options: of :func:`~interfuse.kit.federated.fuse` (``beta``,
            ``weighting`` ...).

    In round 1 clients get no array; later each gets its targets, float64 [m, C], or no array if it was not there before. The last
    round's :class:`~interfuse.kit.federated.Fused` is kept as ``fused``.

    Raises:
        InterfuseError: ``needs.package`` without ``flwr``.
    """
    try:
        common: Any = importlib.import_module("flwr.common")
        base: Any = importlib.import_module("flwr.server.strategy").Strategy
    except ImportError as error:
        raise InterfuseError("needs.package", "clients on several machines need Flower", where="flwr",
                             fix="pip install flwr, or simulate the clients here with distill/knfu.") from error  # fmt: skip

    class Knowledge(base):  # type: ignore[misc]
        """Predictions in, personal targets out."""

        def __init__(self) -> None:
            self.fused: Fused | None = None

        def initialize_parameters(self, client_manager: Any) -> Any:
            return common.ndarrays_to_parameters([])

        def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> list[tuple[Any, Any]]:
            client_manager.wait_for(least)
            place = {} if self.fused is None else {name: n for n, name in enumerate(self.fused.clients)}
            out = []
            for name, client in sorted(client_manager.all().items()):
                mine = [self.fused.targets[place[name]]] if self.fused is not None and name in place else []
                out.append((client, common.FitIns(common.ndarrays_to_parameters(mine), {"round": server_round})))
            return out

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[Any, dict[str, Any]]:
            sent: dict[str, np.ndarray] = {}
            for client, said in results:
                arrays = common.parameters_to_ndarrays(said.parameters)
                if len(arrays) != 1:
                    raise InterfuseError(
                        "input.shape",
                        f"a client sends one array of predictions, not {len(arrays)}",
                        where=str(client.cid),
                    )
                sent[str(client.cid)] = arrays[0]
            if not sent:
                return None, {}
            self.fused = fuse(sent, **options)
            return common.ndarrays_to_parameters([]), {"clients": len(sent)}

        def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> list[Any]:
            return []

        def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> tuple[Any, dict[str, Any]]:
            return None, {}

        def evaluate(self, server_round: int, parameters: Any) -> None:
            return None

    return Knowledge()
