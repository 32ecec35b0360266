"""Judging files by what they give for a split, whatever runtime computed it."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odn.data import DataSpec, Split
from odn.metrics import Score, Tally
from odn.runtimes import Logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Scores what a file gives for the images of a split.

    Attributes:
        spec: of the dataset.
        targets: of all N images, as the task has them.
    """

    spec: DataSpec
    targets: Tensor

    def score(self, outputs: Logits) -> Score:
        """Score the outputs of a file.

        Args:
            outputs: for all N images, numbers in their own units.

        Returns:
            The score in the metric of the data.
        """
        given = torch.from_numpy(outputs)
        if self.spec.task == "regression":  # targets are held standardised
            given = (given - torch.tensor(self.spec.target_mean)) / torch.tensor(self.spec.target_std)
        tally = Tally(self.spec.task, len(self.spec.classes), len(given), torch.device("cpu"))
        for positions in torch.arange(len(given)).split(256):
            tally.add(given[positions], self.targets[positions], positions)
        return tally.score(self.spec.metric)

    def difference(self, outputs: Logits, reference: Logits) -> float:
        """Compare the outputs of two files.

        Args:
            outputs: of the one.
            reference: of the other.

        Returns:
            Largest absolute difference of a logit, or beyond rounding of a number in units of its standard deviation.
        """
        apart = np.abs(outputs - reference)
        if self.spec.task == "regression":
            # A number far from zero is rounded more coarsely than its deviation may allow for.
            apart = (apart - 2 * np.finfo(np.float32).eps * np.abs(reference)).clip(0) / self.spec.target_std
        return float(apart.max())

    def agreement(self, outputs: Logits, reference: Logits) -> float | None:
        """Compare the answers of two files.

        Args:
            outputs: of the one.
            reference: of the other.

        Returns:
            Share of equal labels, of images or pixels; None where answers are numbers.
        """
        if self.spec.task == "regression":
            return None
        if self.spec.task == "multilabel":
            return float(((outputs > 0) == (reference > 0)).mean())
        return float((outputs.argmax(1) == reference.argmax(1)).mean())


def write_inputs(split: Split, path: Path) -> Judge:
    """Write the decoded images of a split, or the ids of its texts, as an .npy file, a batch at a time.

    Args:
        split: any split.
        path: the file, uint8 of shape (N, C, H, W), or int64 of shape (N, T).

    Returns:
        What scores outputs for them.
    """
    kind = np.int64 if split.spec.texts else np.uint8
    inputs = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(len(split), *split.spec.input_shape))
    targets: list[Tensor] = []
    done = 0
    for batch, labels in split.batches(256, torch.arange(len(split)), torch.device("cpu")):
        inputs[done : done + len(batch)] = batch.numpy()
        targets.append(labels)
        done += len(batch)
    inputs.flush()
    return Judge(spec=split.spec, targets=torch.cat(targets))
