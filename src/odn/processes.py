"""The processes that train one network together, as ``torchrun`` starts them: who is first, sums, agreement.

Without ``torchrun`` there is one process, and everything here is free.
"""

import atexit
import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from odn.data import Share
from odn.errors import ElsewhereError, OdnError
from odn.launch import rank, restarts, world_size

Value = TypeVar("Value")
Given = ParamSpec("Given")

_alone = contextvars.ContextVar("alone", default=False)
# The first process measures and writes the report while the others wait; lost ones are torchrun's to notice.
_PATIENCE = timedelta(hours=1)


@functools.cache
def accelerator() -> Accelerator:
    """Return Accelerate's view of this process, joining it with the others at the first call.

    Returns:
        The same object every time.

    Raises:
        OdnError: when ``torchrun`` started several processes and they did not find each other.
    """
    if restarts():
        _meet_again()
    found = Accelerator(
        # Left to itself, Accelerate takes CPU processes for single ones where torch was built for CUDA.
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_PATIENCE),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    if found.num_processes != world_size():
        raise OdnError(
            f"torchrun started {world_size()} processes, but this one sees {found.num_processes}; "
            "give every process its own GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    atexit.register(_leave)
    return found


def _leave() -> None:
    # Gloo's threads that are still running when the interpreter is gone end the process with SIGABRT, now and then.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _meet_again() -> None:
    # With torchrun's c10d rendezvous (--standalone) the store still holds the addresses of the processes that are gone,
    # and PyTorch does not tell the attempts apart there.
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    torch.distributed.init_process_group(
        store=PrefixStore(f"attempt_{restarts()}", store),
        rank=rank(),
        world_size=world_size(),
        timeout=_PATIENCE,
    )


def lost_another(error: RuntimeError) -> bool:
    """Say whether an error means that another process is gone.

    Args:
        error: as raised by PyTorch.

    Returns:
        True for failed communication.
    """
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def training_device() -> torch.device:
    """Return the device on which this process trains and evaluates.

    Returns:
        As Accelerate chooses it: a GPU where there is one, else the CPU.
    """
    device = torch.device(accelerator().device)
    return torch.device("cpu") if device.type == "cpu" else device


def share() -> Share:
    """Return which part of the data this process takes.

    Returns:
        Its number and the number of processes; one of one within a step of the first process alone.
    """
    if _alone.get():
        return Share()
    return Share(rank=accelerator().process_index, world=accelerator().num_processes)


def wait() -> None:
    """Wait until every process has come here."""
    if share().world > 1:
        accelerator().wait_for_everyone()


def agree(value: Value) -> Value:
    """Give every process what the first one has.

    Args:
        value: of this process.

    Returns:
        The value of the first process.
    """
    if share().world == 1:
        return value
    values = [value]
    broadcast_object_list(values, from_process=0)
    return values[0]


def total(values: Tensor) -> Tensor:
    """Add up tensors over all processes.

    Args:
        values: of this process.

    Returns:
        Their sum, the same in every process.
    """
    if share().world == 1:
        return values
    summed: Tensor = accelerator().reduce(values, reduction="sum")
    return summed


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every process the tensors of the first one.

    Args:
        tensors: of the same shapes in all of them; they are changed in place.
    """
    if share().world == 1:
        return
    for tensor in tensors:
        received = tensor.detach().contiguous()
        torch.distributed.broadcast(received, 0)
        tensor.detach().copy_(received)


def check_copies(*modules: nn.Module) -> None:
    """Make sure that all processes hold the same weights, bit for bit.

    Args:
        *modules: networks of which every process has a whole copy.

    Raises:
        OdnError: when they differ.
    """
    if share().world == 1:
        return
    tensors = [tensor for module in modules for tensor in module.parameters()]
    # The sum of the bits, as whole numbers, depends on no order.
    sums = torch.stack([t.detach().view(torch.int32).sum(dtype=torch.int64) for t in tensors])
    if not torch.equal(total(sums), share().world * sums):
        raise OdnError(
            "the processes no longer hold the same weights: one of them computes wrongly; continue with --resume on "
            "other hardware"
        )


def first_only(step: Callable[Given, Value]) -> Callable[Given, Value]:
    """Let the first process do a step alone, while the others wait for its result.

    Args:
        step: reads and writes files. Within it everything is as if there were one process.

    Returns:
        The step, for every process to call.
    """

    @functools.wraps(step)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Value:
        if share().world == 1:
            return step(*args, **kwargs)
        nothing: list[Value] = []
        if share().rank > 0:
            if not (result := agree(nothing)):
                raise ElsewhereError("the first process failed")
            return result[0]
        outside = _alone.set(True)
        try:
            done = [step(*args, **kwargs)]
        except Exception:
            _alone.reset(outside)
            agree(nothing)  # or the others would wait for ever
            raise
        _alone.reset(outside)
        return agree(done)[0]

    return called


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Let one process of each machine do what is inside before the others do, e.g. download.

    Yields:
        Nothing.
    """
    with accelerator().local_main_process_first() if share().world > 1 else contextlib.nullcontext():
        yield
