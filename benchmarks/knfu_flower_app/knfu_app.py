"""The clients and the server of KnFu as a Flower app: predictions go one way, personal targets the other; weights and data stay."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.client import ClientApp, NumPyClient
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from knfu_clients import digits, round_of, softmax

from interfuse.kit.flower import strategy


class Knower(NumPyClient):
    """One client. Its weights live in the state that Flower keeps for its node, and are never sent."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.number, self.clients = int(context.node_config["partition-id"]), int(context.run_config["clients"])

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        shared, private, _ = digits(self.clients)
        state = self.context.state
        weights = state["weights"].to_numpy_ndarrays()[0] if "weights" in state else np.zeros((65, 10))
        weights = round_of(weights, parameters[0] if parameters else None, shared, private[self.number])
        state["weights"] = ArrayRecord([weights])
        return [softmax(shared @ weights)], len(private[self.number][0]), {"client": self.number}


def make_server(context: Context) -> ServerAppComponents:
    """The strategy, which writes down what it fused in every round."""
    made = strategy(least=int(context.run_config["clients"]), beta=float(context.run_config["beta"]))
    aggregate, out, rounds = made.aggregate_fit, Path(str(context.run_config["out"])), []  # type: ignore[var-annotated]

    def noted(server_round: int, results: Any, failures: Any) -> Any:
        answer = aggregate(server_round, results, failures)
        number = {str(client.cid): int(said.metrics["client"]) for client, said in results}
        names = [number[name] for name in made.fused.clients]
        rounds.append({"clients": names, "failures": len(failures), "weights": made.fused.weights.tolist(),
                       "targets": made.fused.targets.tolist()})  # fmt: skip
        out.with_suffix(".part").write_text(json.dumps(rounds))
        os.replace(out.with_suffix(".part"), out)  # who waits for it never sees half of it
        return answer

    made.aggregate_fit = noted
    return ServerAppComponents(
        strategy=made, config=ServerConfig(num_rounds=int(context.run_config["rounds"]), round_timeout=120.0)
    )


client = ClientApp(client_fn=lambda context: Knower(context).to_client())
server = ServerApp(server_fn=make_server)
