"""Questions to the SuperLink in a SuperNode's name, outside of one: is our key registered, and "we are gone".

Leans on Flower's private API, see `clients.flower_private`; the slow tests with real processes watch over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from clients.flower_private import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    FleetHttpClient,
    NodeAuthHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    public_key_to_bytes,
)
from gradtf_fl.deployment import going_direct

Registration = Literal["registered", "refused", "clock", "tls", "unreachable"]
PROBE_INTERVAL = 10.0  # seconds; the probe goes offline again at once


@contextmanager
def _client(address: str, ca: Path, key: Path, proxy: bool) -> Iterator[tuple[FleetHttpClient, bytes]]:
    private = load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(private, EllipticCurvePrivateKey)
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(private, private.public_key()),
    ]
    with nullcontext() if proxy else going_direct(address.rpartition(":")[0].strip("[]")):
        made = FleetHttpClient.from_server_address(address, False, str(ca), interceptors)
    with made as client:
        yield client, public_key_to_bytes(private.public_key())


def registration(address: str, ca: Path, key: Path, proxy: bool = False) -> Registration:
    """What the SuperLink at ``address`` says of our node key; asked while no SuperNode of ours runs.

    ``registered``: all is well. ``refused``: the key is not registered, or counts as online (just killed, or in use by
    a copy); Flower does not say which. ``clock``: our signature's time is refused. ``tls``: the certificate is not
    accepted. ``unreachable``: no answer.

    Args:
        proxy: go by the proxy that the environment names.
    """
    with _client(address, ca, key, proxy) as (client, public):
        try:
            node_id = client.ActivateNode(
                ActivateNodeRequest(public_key=public, heartbeat_interval=PROBE_INTERVAL)
            ).node_id
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        except httpx.HTTPStatusError as error:
            return "clock" if error.response.status_code == httpx.codes.UNAUTHORIZED else "refused"
        except httpx.HTTPError as error:
            return "tls" if "CERTIFICATE" in str(error) or "certificate" in str(error) else "unreachable"
        return "registered"


def deactivate(address: str, ca: Path, key: Path, node_id: int, proxy: bool = False) -> bool:
    """Tell the SuperLink that our node ``node_id`` is gone; whether it took note."""
    try:
        with _client(address, ca, key, proxy) as (client, _):
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
    except (httpx.HTTPError, OSError, ValueError):
        return False
    return True
