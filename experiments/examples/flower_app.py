"""An existing Flower app made secure by the lines marked as new. FedAdam stays inside and sees one mean a round.

$ python -m experiments.demos.flower_nodes experiments/examples/flower_app.py
accuracy on new images: 0.862
"""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam
from sklearn.datasets import load_digits

from gradtf_fl.flower import SecureAverage, secagg_mod  # new

client = ClientApp(mods=[secagg_mod("members/{partition-id}/policy.toml")])  # new: mods=
server = ServerApp()
model = torch.nn.Linear(64, 10)
IMAGES, DIGITS = torch.tensor(load_digits().data / 16).float(), torch.tensor(load_digits().target)


@client.train()
def train(message: Message, context: Context) -> Message:
    own = slice(int(context.node_config["partition-id"]), 1500, 3)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(IMAGES[own]), DIGITS[own]).backward()
        optimizer.step()
    arrays, metrics = ArrayRecord(model.state_dict()), MetricRecord({"num-examples": 500})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = SecureAverage(FedAdam(fraction_evaluate=0.0, eta=0.3), roster="members/roster.txt", clip=10.0)  # new
    model.load_state_dict(strategy.start(grid, ArrayRecord(model.state_dict())).arrays.to_torch_state_dict())
    print(f"accuracy on new images: {(model(IMAGES[1500:]).argmax(1) == DIGITS[1500:]).float().mean():.3f}")
