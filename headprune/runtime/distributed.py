"""The few lines between us and the launchers: ``torchrun`` and ``accelerate launch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from headprune.errors import HeadpruneError
from headprune.runtime.launcher import launched_rank, launched_size, variable

_PATIENCE = timedelta(hours=6)
"""How long a process waits for the slowest other one; one that dies is noticed at once."""


class WorkerError(HeadpruneError):
    """Another process of this run died or can't be reached."""


@dataclass(frozen=True)
class World:
    """This process among those of the run: the only one, unless a launcher started several."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that talks and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of ``count`` equal pieces of work are this process's."""
        return range(self.rank, count, self.size)

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum of every process's ``tensor``, the same on each. Adding zeros changes no bit.

        Raises:
            WorkerError: Another process died.
        """
        if self.size == 1:
            return tensor
        with reaching_the_others():
            total = tensor.cpu().clone()
            torch.distributed.all_reduce(total)
        return total.to(tensor.device)

    def wait(self) -> None:
        """Wait until every process is here.

        Raises:
            WorkerError: Another process died.
        """
        self.summed(torch.zeros(1))


@contextmanager
def launched_world(*, cpu: bool = False, trains: bool = False) -> Iterator[World]:
    """Join the other processes of this run for the length of a block, if a launcher started several.

    They meet on the CPU (gloo) whatever they compute on: results are put together once a pass, and are small. What ``trains``
    puts gradients together where they are.

    Raises:
        WorkerError: The others can't be reached.
    """
    if launched_size() == 1:
        yield World()
        return
    on_gpu = torch.cuda.is_available() and not cpu
    with reaching_the_others():
        backend = "cpu:gloo,cuda:nccl" if on_gpu and trains else "gloo"
        torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    device = f"cuda:{variable('LOCAL_RANK', default=0, least=0)}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    yield World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    torch.distributed.destroy_process_group()  # so that no other process waits for this one


@contextmanager
def reaching_the_others() -> Iterator[None]:
    """Turn what a collective operation raises into an error that says that another process died."""
    try:
        yield
    # A variable that the launcher should have set is a ValueError.
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            f"another process of this run died or can't be reached ({str(error).splitlines()[0]})",
            where=f"process {launched_rank()} of {launched_size()}",
            hint="its own message stands above; the same command goes on where this run stopped, heal with `resume`",
        ) from error
