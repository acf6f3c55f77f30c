"""The provider's signed statement, kept beside a stored adapter: ORG/rounds/ROUND/adapter.json (0600).

With it anybody who has the pinned provider key can tell later whether the adapter's files are still the signed ones.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, StringConstraints

from gradtf_fl.adapters import folder_problems, packed_header
from gradtf_fl.config import PublicKey, Section, validate
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import STATEMENT
from gradtf_fl.files import PRIVATE, replace_file
from gradtf_fl.round_messages import AdapterDelivery, adapter_statement

Sha256 = PublicKey  # 32 bytes as hex, too
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]


class AdapterStatement(Section):
    """What the provider signed about an adapter, and when it came.

    Attributes:
        llm_adapter_sha256: of the packed adapter.
        update_sha256: of the global update it was generated from.
        tiny_sha256: of the TinyLM's adapter as it starts (`AdapterDelivery.tiny_hash`); None from version 0.1.
        provider_key: the key that was pinned at delivery.
        packed_header: see `gradtf_fl.adapters.proof`.
        delivery: counts this organization's deliveries, over all runs.
        received: UTC, seconds.
    """

    run_id: str
    round: int = Field(ge=1)
    llm_adapter_sha256: Sha256
    update_sha256: Sha256
    tiny_sha256: Sha256 | None = None
    signature: Signature
    provider_key: PublicKey
    packed_header: str
    delivery: int = Field(ge=1)
    received: str

    def says_the_same(self, other: AdapterStatement) -> bool:
        """Whether both are about one delivery, perhaps repeated."""
        return self.model_copy(update={"delivery": other.delivery, "received": other.received}) == other

    def problems(self, adapter: Path, round_number: int, provider_key: str) -> list[str]:
        """Why the adapter in folder ``adapter`` is not what the provider (hex key) signed for this round."""
        problems = []
        if self.round != round_number:
            problems.append(f"{adapter}: its statement is about round {self.round}")
        tiny = None if self.tiny_sha256 is None else bytes.fromhex(self.tiny_sha256)
        hashes = bytes.fromhex(self.llm_adapter_sha256), bytes.fromhex(self.update_sha256), tiny
        signed = adapter_statement(self.run_id, self.round, *hashes)
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(provider_key)).verify(
                bytes.fromhex(self.signature), signed
            )
        except (InvalidSignature, ValueError):
            other = (
                " (it was delivered under another one, which --provider-key may name)"
                if self.provider_key != provider_key
                else ""
            )
            problems.append(
                f"{adapter}: its statement is not signed by the provider's key {provider_key[:16]}...{other}"
            )
        return problems + folder_problems(adapter, self.packed_header, self.llm_adapter_sha256)


def statement_of(delivery: AdapterDelivery, provider_key: bytes, number: int) -> AdapterStatement:
    """The statement to keep about a delivery; CorruptFile when the adapter is not packed as it should be."""
    return AdapterStatement(
        run_id=delivery.run_id,
        round=delivery.round,
        llm_adapter_sha256=hashlib.sha256(delivery.adapter).hexdigest(),
        update_sha256=hashlib.sha256(delivery.update).hexdigest(),
        tiny_sha256=delivery.tiny_hash.hex(),
        signature=delivery.signature.hex(),
        provider_key=provider_key.hex(),
        packed_header=packed_header(delivery.adapter),
        delivery=number,
        received=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_statement(round_folder: Path, statement: AdapterStatement) -> None:
    """Keep ``statement`` in ``round_folder`` (made where missing); an earlier one is replaced in one step."""
    round_folder.mkdir(parents=True, exist_ok=True)
    text = statement.model_dump_json(indent=1) + "\n"
    replace_file(round_folder / STATEMENT, text.encode(), PRIVATE)


def read_statement(round_folder: Path) -> AdapterStatement | None:
    """The statement in ``round_folder``, None where there is none; CorruptFile when it is damaged."""
    import json

    path = round_folder / STATEMENT
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise CorruptFile(f"{path}: no JSON object")
        return validate(AdapterStatement, document, lambda key: f"{path}: {key}" if key else str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from error
    except ConfigError as error:
        raise CorruptFile(error.problems) from error
    except ValueError as error:
        raise CorruptFile(f"{path}: not JSON") from error
