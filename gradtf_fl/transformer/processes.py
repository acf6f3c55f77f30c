"""Training in several processes, one for each GPU: every process computes its own groups of a batch.

Any launcher that sets the usual environment will do, for example

    accelerate launch --num_processes 2 --module gradtf_fl.cli.main train --device cuda --tuples DIR --out FILE
    torchrun --nproc-per-node 2 -m gradtf_fl.cli.main train --device cuda --tuples DIR --out FILE

All processes draw the same batch, add up losses and gradients, and so take the same steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Processes:
    """This process among all: ``rank`` of ``world``, number ``local_rank`` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def launched(cls) -> Processes:
        """What the launcher's environment says; one process alone without a launcher."""
        return cls(*(int(os.environ.get(name, alone)) for name, alone in _ENVIRONMENT))

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Inside, the processes are in touch."""
        if self.world == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def own(self, count: int) -> Tensor:
        """Which of ``count`` groups this process computes."""
        return torch.arange(self.rank, count, self.world)

    def total(self, values: Tensor) -> Tensor:
        """``values``, detached, added up over all processes."""
        summed = values.detach()
        if self.world > 1:
            summed = summed.clone()
            distributed.all_reduce(summed)
        return summed

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes the sum of all processes' gradients."""
        if self.world > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()


_ENVIRONMENT = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
ALONE = Processes()
