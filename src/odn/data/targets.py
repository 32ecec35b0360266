"""From labels as they were found to what a task learns from: indices, several labels, numbers or masks.

Shapes: H height, W width, K outputs, N samples.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odn.data.splits import DataSpec
from odn.errors import OdnError
from odn.metrics import IGNORED
from odn.tasks import LARGEST, Metric, Task, choose_metric

Raw = npt.NDArray[Any]
Labels = npt.NDArray[Any]
Names = tuple[str, ...]
UNLABELLED = 255  # of a pixel in a mask file, as PASCAL VOC has it
MOST_CLASSES = 1000  # of masks: an image with as many is no mask


def task_of(y: Raw, where: str) -> Task:
    """Say what labels ask for, by their type and shape.

    Args:
        y: as found.
        where: what it was found in, for messages.

    Returns:
        Masks are integers of three dimensions, several labels integers of two, numbers floats; all else is a class.

    Raises:
        OdnError: where they may mean something else as well: floats that are whole numbers, one 1 in every row.
    """
    if y.dtype.kind == "f":
        if np.isfinite(y).all() and (y == np.round(y)).all():
            raise OdnError(
                f"{where} is {y.dtype} but holds whole numbers alone; say --task regression for numbers to predict, or "
                "convert it to integers for classes"
            )
        return "regression"
    if y.ndim == 3:
        return "segmentation"
    if y.ndim == 2 and y.shape[1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all():
        raise OdnError(
            f"{where} has a single 1 in every row; say --task multilabel for several labels, or give y.argmax(1) for "
            "classes"
        )
    return "multilabel" if y.ndim == 2 else "classification"


def targets_of(
    task: Task, y: Raw, where: str, images: Tensor | Sequence[object], classes: Sequence[object] | None = None
) -> tuple[Names, Labels]:
    """Turn labels into what a task learns from.

    Args:
        task: what they ask for.
        y: as found, one per image.
        where: what they were found in, for messages.
        images: uint8 of shape (N, C, H, W), or files.
        classes: names of the outputs where they are known; None takes what ``y`` holds.

    Returns:
        Names of the outputs, and labels: int64 of shape (N,), for several labels float32 and numbers float64 of shape
        (N, K), for masks int16 of shape (N, H, W).

    Raises:
        OdnError: when they are not one per image, or do not fit the task.
    """
    names = None if classes is None else tuple(map(str, classes))
    if y.ndim == 0 or len(y) != len(images):
        raise OdnError(f"{where} is {y.dtype} of shape {y.shape}; allowed: one entry per image, {len(images)} in all")
    return _READERS[task](y, where, images, names)


def _classes(y: Raw, where: str, images: Tensor | Sequence[object], names: Names | None) -> tuple[Names, Labels]:
    if y.ndim != 1 or y.dtype.kind not in "iuU":
        raise OdnError(
            f"{where} is {y.dtype} of shape {y.shape}; allowed: one integer or string per image, shape ({len(images)},)"
        )
    found, indices = np.unique(y, return_inverse=True)
    texts = tuple(map(str, found.tolist()))
    if names is None:
        return texts, indices.astype(np.int64)
    place = {name: index for index, name in enumerate(names)}
    if y.dtype.kind in "iu" and not set(texts) <= set(names):  # names for what is counted from 0
        place = {str(index): index for index in range(len(names))}
    unknown = [text for text in texts if text not in place]
    if unknown:
        raise OdnError(f"{where} has the label '{unknown[0]}', which is not one of the training labels; remove it")
    return names, np.asarray([place[text] for text in texts], dtype=np.int64)[indices]


def _several(y: Raw, where: str, _images: Tensor | Sequence[object], names: Names | None) -> tuple[Names, Labels]:
    if y.ndim != 2 or y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
        raise OdnError(
            f"{where} is {y.dtype} of shape {y.shape}; allowed: 0 or 1 for each of several labels, shape (N, K)"
        )
    return _outputs(y.astype(np.float32), where, names)


def _numbers(y: Raw, where: str, _images: Tensor | Sequence[object], names: Names | None) -> tuple[Names, Labels]:
    if y.ndim not in (1, 2) or y.dtype.kind not in "biuf":
        raise OdnError(f"{where} is {y.dtype} of shape {y.shape}; allowed: one or several numbers per image")
    y = y.reshape(len(y), -1).astype(np.float64)
    if not (np.abs(y) <= LARGEST).all():  # NaN is not
        first = int(np.argwhere(~(np.abs(y) <= LARGEST).all(1))[0, 0])
        raise OdnError(f"{where} has NaN, infinite or huge values, first for image {first}; remove or repair it")
    return _outputs(y, where, names)


def _outputs(y: Raw, where: str, names: Names | None) -> tuple[Names, Labels]:
    names = names or (("y",) if y.shape[1] == 1 else tuple(f"y{index}" for index in range(y.shape[1])))
    if y.shape[1] != len(names) or not names:
        raise OdnError(f"{where} has {y.shape[1]} values per image for {len(names)} names; they must agree")
    return names, y


def _masks(y: Raw, where: str, images: Tensor | Sequence[object], names: Names | None) -> tuple[Names, Labels]:
    sides = tuple(images.shape[2:]) if isinstance(images, Tensor) else y.shape[1:]
    if y.ndim != 3 or y.dtype.kind not in "biu" or y.shape[1:] != sides:
        raise OdnError(
            f"{where} is {y.dtype} of shape {y.shape}; allowed: one integer per pixel of images of "
            f"{'x'.join(map(str, sides))}"
        )
    y = y.astype(np.int64)
    labelled = y[y != UNLABELLED]
    most = int(labelled.max(initial=-1))
    if not labelled.size or labelled.min() < 0 or most >= (len(names) if names else MOST_CLASSES):
        allowed = len(names) if names else MOST_CLASSES
        raise OdnError(
            f"{where} has labels from {labelled.min(initial=UNLABELLED)} to {most}; allowed: 0 to {allowed - 1}, and "
            f"{UNLABELLED} for pixels that do not count"
        )
    names = names or tuple(map(str, range(most + 1)))
    return names, np.where(y == UNLABELLED, IGNORED, y).astype(np.int16)


_Reader = Callable[[Raw, str, Tensor | Sequence[object], Names | None], tuple[Names, Labels]]
_READERS: dict[Task, _Reader] = {
    "classification": _classes,
    "multilabel": _several,
    "regression": _numbers,
    "segmentation": _masks,
}


def target_facts(
    task: Task, metric: Literal["auto", Metric], classes: Names, labels: Labels, valid: Labels
) -> dict[str, Any]:
    """Say what a ``DataSpec`` has to know of the labels.

    Args:
        task: what they ask for.
        metric: as asked for.
        classes: names of the outputs.
        labels: of the training split.
        valid: of the validation split.

    Returns:
        Its ``classes``, ``task``, ``metric``, ``target_mean``, ``target_std``, ``train_support`` and ``valid_support``.
    """
    facts: dict[str, Any] = {"classes": classes, "task": task, "metric": choose_metric(task, metric)}
    facts |= {"train_support": support(task, len(classes), labels), "valid_support": support(task, len(classes), valid)}
    if task == "regression":
        values = labels.astype(np.float64)
        std = values.std(0)
        # A number that never varies would divide by zero.
        facts |= {"target_mean": tuple(values.mean(0).tolist())}
        facts |= {"target_std": tuple(np.where(std > 0, std, 1.0).tolist())}
    return facts


def support(task: Task, count: int, labels: Labels) -> tuple[int, ...]:
    """Count the samples of each class or label.

    Args:
        task: what the labels ask for.
        count: number of classes or labels.
        labels: of N samples.

    Returns:
        Their numbers; none for masks and numbers.
    """
    if task == "classification":
        return tuple(np.bincount(labels, minlength=count).tolist())
    return tuple(labels.astype(np.int64).sum(0).tolist()) if task == "multilabel" else ()


def as_targets(labels: Labels, spec: DataSpec) -> Tensor:
    """Turn labels into the tensor that training reads.

    Args:
        labels: of N samples.
        spec: of the dataset.

    Returns:
        The same, numbers standardised to float32: large ones would have lost their differences before.
    """
    if spec.task == "regression":
        labels = ((labels - np.asarray(spec.target_mean)) / np.asarray(spec.target_std)).astype(np.float32)
    return torch.from_numpy(labels)
