"""What a run needs to go on after an interruption: its records, the newest training state, the best weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import final

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from odn.engine import Stage
from odn.errors import OdnError, UsageError
from odn.files import remove, write_atomically
from odn.network import Prefix, weights_of
from odn.records import EpochRecord, Verb, append_history, read_history, write_history
from odn.storage import load_network, save_network
from odn.tables import from_table

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where the newest saved training state stands.

    Attributes:
        depth: of the prefix in training.
        epoch: the epoch completed last, within its phase and depth.
        step: optimizer steps taken at this depth.
        records: records of this verb written up to there.
    """

    depth: int
    epoch: int
    step: int
    records: int


@final
class Checkpoints:
    """The memory of one verb of a run. Without a run directory it lasts as long as the process.

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
        self._verb, self._run = verb, run
        self._kept: dict[str, dict[str, Tensor]] = {}
        if run is None:
            return
        self._history, self._folder = run / "history.jsonl", run / "checkpoints"
        self._state = self._folder / f"{verb}.safetensors"
        history = read_history(self._history)
        if resume and self._state.is_file():
            self.position = _read_position(self._state)
            # A record without its state is trained again, so it is dropped here.
            self.records = [record for record in history if record.verb == verb][: self.position.records]
            if len(self.records) < self.position.records:
                raise OdnError(f"{self._history} is shorter than {self._state} says; start anew with --force")
        else:
            remove(self._state)
        others = [record for record in history if record.verb != verb]
        write_history(self._history, sorted([*others, *self.records], key=lambda record: record.verb == "finetune"))

    def commit(self, record: EpochRecord, stage: Stage) -> None:
        """Remember an epoch: its record first, then the state that follows it.

        Args:
            record: of the epoch.
            stage: the training as it stands after it.
        """
        assert record.verb == self._verb
        self.records.append(record)
        if self._run is None:
            return
        append_history(self._history, record)
        position = {
            "schema": SCHEMA,
            "depth": record.depth,
            "epoch": record.epoch,
            "step": stage.step,
            "records": len(self.records),
        }
        write_atomically(self._state, save(_state_of(stage), metadata={"odn": json.dumps(position)}))

    def restore(self, stage: Stage) -> None:
        """Load the newest saved state into a fresh stage of the same depth.

        Args:
            stage: the stage to fill.

        Raises:
            OdnError: when the saved state does not fit.
        """
        assert self.position is not None
        try:
            tensors = load_file(self._state)
            _fill(stage.prefix, tensors, "network")
            _fill(stage.averaged, tensors, "averaged")
        except (safetensors.SafetensorError, KeyError, RuntimeError, OSError) as error:
            raise OdnError(f"cannot resume from {self._state} ({error}); start anew with --force") from error
        for name, parameter in stage.prefix.named_parameters():
            prefix = f"optimizer/{name}/"
            found = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            if found:
                # A copy into the parameter's own memory layout keeps later sums bit-identical.
                stage.optimizer.state[parameter] = {
                    key: torch.empty_like(parameter).copy_(t) if t.shape == parameter.shape else t
                    for key, t in found.items()
                }
        stage.step = self.position.step
        stage.ema.n_averaged.fill_(stage.step)

    def keep(self, name: str, network: Prefix) -> None:
        """Keep a network under a name, replacing what was kept there.

        Args:
            name: of a directory.
            network: the network as it stands.
        """
        if self._run is None:
            self._kept[name] = weights_of(network)
        else:
            save_network(network, self._folder / name)

    def take(self, name: str, network: Prefix) -> None:
        """Load the weights of a network kept earlier.

        Args:
            name: as given to ``keep``.
            network: of the same shapes.
        """
        kept = self._kept[name] if self._run is None else load_network(self._folder / name).state_dict()
        network.load_state_dict(kept)


def _read_position(path: Path) -> Position:
    try:
        with safetensors.safe_open(path, "pt") as file:
            table = json.loads(file.metadata()["odn"])
        if table["schema"] != SCHEMA:
            raise OdnError(f"{path} has schema {table['schema']}; this odn reads {SCHEMA}; start anew with --force")
        return from_table(Position, {key: value for key, value in table.items() if key != "schema"})
    except (
        safetensors.SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        UsageError,
    ) as error:
        raise OdnError(f"{path} is damaged ({error}); start anew with --force") from error


def _state_of(stage: Stage) -> dict[str, Tensor]:
    tensors = {f"network/{name}": tensor for name, tensor in weights_of(stage.prefix).items()}
    tensors |= {f"averaged/{name}": tensor for name, tensor in weights_of(stage.averaged).items()}
    for name, parameter in stage.prefix.named_parameters():
        for key, value in stage.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value.detach().cpu().contiguous()
    return tensors


def _fill(module: Prefix, tensors: dict[str, Tensor], group: str) -> None:
    prefix = f"{group}/"
    module.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
