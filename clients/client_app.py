"""The organization's Flower ClientApp, as a simulation runs it: one thin handler for each message.

A deployed organization runs the same `clients.handlers` without it: `clients.node.executor` takes messages from the
SuperNode itself, so that no code which a server sends is ever loaded.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.handlers import HANDLERS, handle
from clients.organization import organization_folder, organization_of
from gradtf_fl.flower import answered, reply_to

app = ClientApp()


def _flower_handler(message_type: str) -> Callable[[Message, Context], Message]:
    def run(message: Message, context: Context) -> Message:
        return reply_to(
            message,
            lambda fields: answered(
                lambda: handle(organization_of(context), message_type, fields),
                message_type,
                lambda: organization_folder(context),
            ),
        )

    return run


for _type in HANDLERS:
    _category, _, _action = _type.partition(".")
    (app.train if _category == "train" else app.evaluate)(_action)(_flower_handler(_type))
