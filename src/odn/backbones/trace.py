"""Watch a network run: which module is given which tensor, and what it makes of it."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from odn.errors import UsageError

Key = tuple[int, int]  # which tensor, and how often it had been changed in place by then


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module.

    Attributes:
        name: of the module.
        start: moment at which it began; moments are counted, not timed.
        end: moment at which it was over.
        input: the tensor that was its first argument; None for anything else.
        output: the tensor that it gave; None for anything else.
        extra: name or number of another argument that was given and not None.
        dimensions: of the input.
    """

    name: str
    start: int
    end: int
    input: Key | None
    output: Key | None
    extra: str | None  # the first argument besides the first one, if any
    dimensions: int


@final
class Trace:
    """Records the calls of every module of a network in the order in which they begin."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self._finished: list[Call] = []
        self._open: list[tuple[int, Key | None, str | None, int]] = []
        self._clock = 0
        self._alive: list[Tensor] = []  # an id is unique only as long as its object lives
        self.source = self._key(example)
        hooks = []
        for name, module in network.named_modules():
            if name:
                hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._leave(name)))
        try:
            _run(network, example)
        finally:
            for hook in hooks:
                hook.remove()
        self.calls = sorted(self._finished, key=lambda call: call.start)

    def _key(self, value: object) -> Key | None:
        if not isinstance(value, Tensor):
            return None
        self._alive.append(value)
        return id(value), value._version

    def _enter(self, _module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = [*((str(number), value) for number, value in enumerate(arguments, 1)), *keywords.items()]
        first = given[0][1] if given else None
        extra = next((label for label, value in given[1:] if value is not None), None)
        self._clock += 1
        self._open.append((self._clock, self._key(first), extra, first.ndim if isinstance(first, Tensor) else 0))

    def _leave(self, name: str) -> Any:
        def hook(_module: nn.Module, _arguments: Any, output: object) -> None:
            start, key, extra, dimensions = self._open.pop()
            self._clock += 1
            call = Call(
                name=name,
                start=start,
                end=self._clock,
                input=key,
                output=self._key(output),
                extra=extra,
                dimensions=dimensions,
            )
            self._finished.append(call)

        return hook

    def only_call(self, name: str) -> Call:
        """Return the one call of a module, from one tensor to one tensor."""
        calls = [call for call in self.calls if call.name == name]
        if len(calls) != 1:
            times = f"called {len(calls)} times" if calls else "not called"
            raise UsageError(
                f"'{name}' is {times} in a forward pass; allowed: once, or the network cannot be cut there"
            )
        call = calls[0]
        if call.extra:
            raise UsageError(
                f"block '{name}' is also given its argument {call.extra}; allowed: what the block before it gives and "
                "nothing else"
            )
        if call.input is None or call.output is None:
            raise UsageError(f"block '{name}' does not turn one tensor into one tensor; choose other blocks")
        return call

    def bridge(self, source: Key | None, target: Key | None, start: int, end: int) -> tuple[str, ...] | None:
        """Name the modules that turn one tensor into another between two moments; None where other code does."""
        names: list[str] = []
        while source != target:
            # Calls are in order, so that of a module and its parts the module comes first.
            step = next((c for c in self.calls if start < c.start and c.end < end and c.input == source), None)
            if step is None or step.extra or step.output is None:
                return None
            if step.output != source:
                names.append(step.name)
            source, start = step.output, step.end
        return tuple(names)


def _run(network: nn.Module, example: Tensor) -> None:
    # In training mode no layer is passed over as an identity, such as a dropout between two blocks. BatchNorm is none
    # in either mode, and quicker in the other.
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    try:
        with torch.device("meta"), torch.no_grad():
            network(example)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        if "meta tensor" in text or "Meta" in text or "device meta" in text:
            raise UsageError(
                "the network's path depends on the values of its input, or it has tensors on a device of their own "
                f"({text}); a network that can be cut does the same for every input, on every device, and its tensors "
                "are parameters or buffers (register_buffer)"
            ) from error
        shape = "x".join(map(str, example.shape[1:]))
        raise UsageError(f"the network cannot take an input of shape {shape}: {text}") from error
