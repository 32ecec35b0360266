"""What a run needs to go on after an interruption: its records, the newest training state, the best weights."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from odn.engine import Progress
from odn.errors import OdnError, UsageError
from odn.files import read_bytes, remove, write_atomically
from odn.manifest import sha256
from odn.network import Network, PartitionedNetwork
from odn.processes import share, wait
from odn.records import VERBS, EpochRecord, Phase, Verb, append_history, read_history, write_history
from odn.sharding import fill
from odn.stage import Stage
from odn.starting import Start, read_start, write_start
from odn.storage import load_network, load_partitioned, save_network
from odn.tables import from_table
from odn.weights import weights_of

SCHEMA = 2
_START = "start.safetensors"
_log = logging.getLogger("odn")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a saved training state stands.

    Attributes:
        phase: of training.
        depth: of the prefix in training.
        epoch: the epoch that is going on or comes next, within its phase and depth.
        batches: batches of that epoch that are done.
        epochs: whole ones before it that no evaluation has followed yet.
        loss_sum: over the samples of both.
        seconds: spent on them.
        step: optimizer steps taken by this stage.
        rate_factor: on the learning rate, lowered when training diverged.
        records: records of this verb written up to there.
    """

    phase: Phase
    depth: int
    epoch: int
    batches: int
    loss_sum: float
    seconds: float
    step: int
    rate_factor: float
    records: int
    epochs: int = 0


@final
class Checkpoints:
    """The memory of one verb of a run. Without a run directory it lasts as long as the process.

    Of a pretrained network that is expanded, it is kept as training found it: going on needs no other file.

    Of several processes the first one writes, and all have to call every method.

    The two newest states are kept, each with a checksum: when the newest is damaged, the one before it is taken up.

    Args:
        verb: which step of the line trains; the records of others are left alone.
        run: the run directory, or None.
        resume: take up what the run directory holds of this verb; otherwise that is cleared.

    Raises:
        OdnError: when what is there cannot be read or cleared.
    """

    def __init__(self, verb: Verb, run: Path | None = None, *, resume: bool = False) -> None:
        self.records: list[EpochRecord] = []
        self.position: Position | None = None
        self.start: Start | None = None
        self._verb, self._run, self._writes = verb, run, run is not None and share().rank == 0
        self._tensors: dict[str, Tensor] = {}
        self._kept: dict[str, dict[str, Tensor]] = {}
        if run is None:
            return
        self._history, self._folder = run / "history.jsonl", run / "checkpoints"
        self._states = [self._folder / f"{verb}.safetensors", self._folder / f"{verb}.previous.safetensors"]
        history = read_history(self._history)
        if resume and verb == "expand":
            self.start = read_start(run)
        if resume and any(path.is_file() for path in self._states):
            self.position, self._tensors = _newest_state(self._states)
            # A record without its state is trained again, so it is dropped here.
            self.records = [record for record in history if record.verb == verb][: self.position.records]
            if len(self.records) < self.position.records:
                raise OdnError(f"{self._history} is shorter than {self._states[0]} says; start anew with --force")
        wait()  # until all have read
        if not self._writes:
            return
        for path in self._states if self.position is None else ():
            remove(path)
        others = [record for record in history if record.verb != verb]
        write_history(self._history, sorted([*others, *self.records], key=lambda record: VERBS.index(record.verb)))

    @property
    def progress(self) -> Progress:
        """Where the newest saved state stands within its phase."""
        assert self.position is not None
        return Progress(**{field.name: getattr(self.position, field.name) for field in dataclasses.fields(Progress)})

    def begin(self, network: PartitionedNetwork, start: Start) -> None:
        """Remember a pretrained network as training finds it.

        Args:
            network: probed, its heads set.
            start: what is known of it.
        """
        self.start = start
        if not self._writes:
            return
        assert self._run is not None
        content = save(weights_of(network))
        write_atomically(self._folder / _START, content)
        self.start = dataclasses.replace(start, sha256=sha256(content))
        write_start(self.start, self._run)

    def take_start(self, network: PartitionedNetwork) -> None:
        """Load the network that ``begin`` remembered.

        Args:
            network: of the same shapes.

        Raises:
            OdnError: when the file was changed.
        """
        wait()  # until it is written
        if self._run is None:
            return
        assert self.start is not None
        content = read_bytes(self._folder / _START)
        if sha256(content) != self.start.sha256:
            raise OdnError(f"{self._folder / _START} was changed since it was written; start anew with --force")
        network.load_state_dict(load(content))

    def commit(self, record: EpochRecord, stage: Stage) -> None:
        """Remember an epoch: its record first, then the state that follows it.

        Args:
            record: of the epoch.
            stage: the training as it stands after it.
        """
        assert record.verb == self._verb
        self.records.append(record)
        if self._writes:
            append_history(self._history, record)
        self.save(record.phase, Progress(epoch=record.epoch + 1), stage)

    def save(self, phase: Phase, progress: Progress, stage: Stage) -> None:
        """Remember the state of training.

        Args:
            phase: of training.
            progress: where it stands within the phase.
            stage: the training.
        """
        self.position = Position(
            phase=phase,
            depth=stage.network.depth,
            step=stage.step,
            rate_factor=stage.rate_factor,
            records=len(self.records),
            **dataclasses.asdict(progress),
        )
        self._tensors = _state_of(stage)
        if not self._writes:
            return
        text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(self.position)})
        content = save(self._tensors, metadata={"odn": text, "sha256": _digest(text, self._tensors)})
        newest, previous = self._states
        if newest.is_file():
            newest.replace(previous)
        write_atomically(newest, content)

    def restore(self, stage: Stage) -> None:
        """Load the newest saved state into a stage of the same depth.

        Args:
            stage: the stage to fill.

        Raises:
            OdnError: when the saved state does not fit.
        """
        assert self.position is not None
        tensors = self._tensors
        try:
            fill(stage.network, _group(tensors, "network"))
            fill(stage.averaged, _group(tensors, "averaged"))
        except (KeyError, RuntimeError) as error:
            raise OdnError(f"{self._run} holds the state of another network; start anew with --force") from error
        stage.load_optimizer_state(_group(tensors, "optimizer"))
        stage.step, stage.rate_factor = self.position.step, self.position.rate_factor
        stage.ema.n_averaged.fill_(stage.step)

    def keep(self, name: str, network: Network) -> None:
        """Keep a network under a name, replacing what was kept there.

        Args:
            name: of a directory.
            network: the network as it stands.
        """
        weights = weights_of(network)
        if self._run is None:
            self._kept[name] = weights
        elif self._writes:
            save_network(network, self._folder / name, weights)

    def holds(self, name: str) -> bool:
        """Tell whether a network is kept under a name.

        Args:
            name: as given to ``keep``.

        Returns:
            Whether ``take`` would find it.
        """
        return name in self._kept if self._run is None else (self._folder / name).is_dir()

    def take(self, name: str, network: Network) -> None:
        """Load the weights of a network kept earlier.

        Args:
            name: as given to ``keep``.
            network: of the same shapes.
        """
        wait()  # until it is written
        load = load_partitioned if isinstance(network, PartitionedNetwork) else load_network
        kept = self._kept[name] if self._run is None else load(self._folder / name).state_dict()
        network.load_state_dict(kept)


def _newest_state(paths: Sequence[Path]) -> tuple[Position, dict[str, Tensor]]:
    """Read the newest state that is sound."""
    problems = []
    for path in paths:
        try:
            state = _read_state(path)
        except FileNotFoundError:
            continue
        except OdnError as error:
            problems.append(str(error))
            continue
        if problems:
            _log.warning("%s; going on from the state before it", problems[0])
        return state
    raise OdnError(f"{problems[0] if problems else f'{paths[0]} is missing'}; start anew with --force")


def _read_state(path: Path) -> tuple[Position, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            text = metadata["odn"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        table = json.loads(text)
        if table["schema"] != SCHEMA:
            raise OdnError(f"{path} has schema {table['schema']}; this odn reads {SCHEMA}")
        if metadata["sha256"] != _digest(text, tensors):
            raise OdnError(f"{path} is damaged (its checksum differs)")
        return from_table(Position, {key: value for key, value in table.items() if key != "schema"}), tensors
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, UsageError) as error:
        raise OdnError(f"{path} is damaged ({error})") from error


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _state_of(stage: Stage) -> dict[str, Tensor]:
    tensors = {f"network/{name}": tensor for name, tensor in weights_of(stage.network).items()}
    tensors |= {f"averaged/{name}": tensor for name, tensor in weights_of(stage.averaged).items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in stage.optimizer_state().items()}
    return tensors


def _group(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{group}/"): t for key, t in tensors.items() if key.startswith(f"{group}/")}
