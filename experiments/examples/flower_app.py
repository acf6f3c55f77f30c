"""An existing Flower app made secure by the three marked lines. FedAdam stays inside and sees one mean a round.

Run it (3 minutes: a SuperLink, three SuperNodes, a process for each message); it prints:

    $ python -m experiments.demos.flower_nodes experiments/examples/flower_app.py
OUTPUT
"""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam
from sklearn.datasets import load_digits

from gradtf_fl.flower import SecureAverage, secagg_mod  # new

IMAGES, DIGITS = (torch.tensor(part) for part in load_digits(return_X_y=True))
client = ClientApp(mods=[secagg_mod("members/{partition-id}/policy.toml")])  # new: mods=
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    model, own = torch.nn.Linear(64, 10), slice(int(context.node_config["partition-id"]), 1500, 3)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(IMAGES[own].float() / 16), DIGITS[own]).backward()
        optimizer.step()
    reply = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(DIGITS[own])})}
    return Message(RecordDict(reply), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    model = torch.nn.Linear(64, 10)
    strategy = SecureAverage(FedAdam(fraction_evaluate=0.0), roster="members/roster.txt", clip=10.0)  # new
    result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=3)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    right = model(IMAGES[1500:].float() / 16).argmax(1) == DIGITS[1500:]
    print(f"accuracy on images that nobody trained on: {right.float().mean():.3f}")
