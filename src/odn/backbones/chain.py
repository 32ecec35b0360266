"""Find the chain in a network: run it once without memory, and follow its tensors from module to module.

A network can be cut between two blocks where the second one's input is the very tensor that the first one gave. That is
checked by identity, not by shape, so that whatever happens between them is seen.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from odn.backbones.trace import Call, Trace
from odn.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TailLayer:
    """A layer behind the last block of a network.

    Attributes:
        name: of the module.
        pooled: whether it works on pooled features.
        dimensions: of what it is given, the batch's counted.
    """

    name: str
    pooled: bool
    dimensions: int


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Where a network can be cut.

    Attributes:
        stem: names of the modules that turn the input into the first block's input, in order; None where code of
            the network's own takes part in that.
        early: names of all modules that run before the first block.
        blocks: for each block the names of its modules, in order: its own, after those that stand between it and the
            block before, such as a down-sampling layer.
        tail: the norms, convolutions and activations behind the last block, in a row, up to the first linear layer;
            None where they are no row.
    """

    stem: tuple[str, ...] | None
    early: frozenset[str]
    blocks: tuple[tuple[str, ...], ...]
    tail: tuple[TailLayer, ...] | None


def match_names(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Find the modules that names or patterns mean.

    Args:
        network: any module.
        patterns: names as of ``named_modules``; ``*`` stands for one part between dots or a piece of it, ``#`` for a
            number.

    Returns:
        Names, in the order of the patterns, and for each in that of the network.

    Raises:
        UsageError: when nothing has such a name.
    """
    names = [name for name, _ in network.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        regex = re.compile(re.escape(pattern).replace(r"\*", r"[^.]*").replace(r"\#", r"\d+"))
        matches = [name for name in names if regex.fullmatch(name)]
        if not matches:
            children = ", ".join(name for name, _ in network.named_children()) or "none"
            raise UsageError(
                f"no module is called '{pattern}'; allowed: names or patterns of modules; at the top stand {children}"
            )
        found += matches
    return found


def find_chain(network: nn.Module, example: Tensor, blocks: Sequence[Sequence[str]]) -> Chain:
    """Run a network once and check that its blocks form a chain.

    Args:
        network: on the meta device.
        example: a batch of two inputs on the meta device.
        blocks: for each block the names of its modules, in order.

    Returns:
        Where it can be cut.

    Raises:
        UsageError: with the reason and the first block at which the chain breaks.
    """
    if not blocks:
        raise UsageError("no blocks are named; allowed: names or patterns of modules, in order")
    trace = Trace(network, example)
    first = trace.only_call(blocks[0][0])
    stem = trace.bridge(trace.source, first.input, 0, first.start)
    parts: list[tuple[str, ...]] = []
    last: Call | None = None
    for number, names in enumerate(blocks, 1):
        part: list[str] = []
        for name in names:
            call = trace.only_call(name)
            between = trace.bridge(last.output, call.input, last.end, call.start) if last else ()
            if between is None:
                assert last is not None
                raise UsageError(
                    f"the chain breaks at block {number}, '{name}': its input is not what '{last.name}' gave, nor made "
                    "from that by modules alone; name blocks that follow each other, or build "
                    "odn.PartitionedNetwork(stem, blocks, heads) by hand"
                )
            part += [*between, name]
            last = call
        parts.append(tuple(part))
    assert last is not None
    for name in (*(stem or ()), *(name for part in parts for name in part)):
        trace.only_call(name)
    early = frozenset(call.name for call in trace.calls if call.end < first.start)
    return Chain(stem=stem, early=early, blocks=tuple(parts), tail=_tail(network, trace, last))


def _tail(network: nn.Module, trace: Trace, last: Call) -> tuple[TailLayer, ...] | None:
    tail: list[TailLayer] = []
    pooled = False
    for call in trace.calls:
        module = network.get_submodule(call.name)
        own = any(True for _ in module.parameters(recurse=False))
        # What a layer calls within itself is its own business.
        if call.start < last.end or (not own and any(True for _ in module.children())):
            continue
        if isinstance(module, nn.Linear):
            break
        pooled = pooled or call.dimensions == 2 or (not own and "Pool" in type(module).__name__)
        if own or type(module).__module__.rpartition(".")[2].startswith("activation"):
            if not pooled and trace.bridge(last.output, call.input, last.end, call.start) is None:
                return None
            tail.append(TailLayer(name=call.name, pooled=pooled, dimensions=call.dimensions))
            last = call
    return tuple(tail)
