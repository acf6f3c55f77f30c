"""A Flower app in the manner of its quickstart: plain PyTorch, real images of digits, three nodes."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from sklearn.datasets import load_digits
from torch import nn

from gradtf_fl.flower import SecureAverage, secagg_mod

STRATEGIES = {"FedAvg": FedAvg, "FedAdam": FedAdam, "FedProx": lambda **given: FedProx(proximal_mu=0.1, **given)}
TRAIN, NODES = 1500, 3

client = ClientApp(mods=[secagg_mod("members/{partition-id}/policy.toml")])
server = ServerApp()


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def images(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[rows] / 16, dtype=torch.float32), torch.tensor(y[rows])


@client.train()
def train(message: Message, context: Context) -> Message:
    model = make_model()
    start = message.content["arrays"].to_torch_state_dict()
    model.load_state_dict(start)
    mu = float(message.content["config"].get("proximal-mu", 0.0))
    x, y = images(slice(int(context.node_config["partition-id"]), TRAIN, NODES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        apart = sum(((now - start[name]) ** 2).sum() for name, now in model.named_parameters())
        (loss + mu / 2 * apart).backward()
        optimizer.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    model = make_model()
    strategy = STRATEGIES[str(context.run_config["strategy"])](fraction_evaluate=0.0)
    strategy = SecureAverage(strategy, roster="members/roster.txt", clip=10.0, run_config=context.run_config)
    result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=int(context.run_config["rounds"]))
    model.load_state_dict(result.arrays.to_torch_state_dict())
    x, y = images(slice(TRAIN, None))
    accuracy = float((model(x).argmax(1) == y).float().mean())
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    Path(str(context.run_config["out"])).write_text(json.dumps({"accuracy": accuracy, "weights": weights}))
