"""What a network is asked to do with an input, and how well that can be measured. No torch here."""

from typing import Literal, get_args

from odn.errors import UsageError

Task = Literal["classification", "multilabel", "regression", "segmentation"]
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "mean_average_precision", "r2", "mean_iou"]

LARGEST = 1e30  # absolute value of a number to predict: float32 still holds it, and differences of two
TASKS: tuple[Task, ...] = get_args(Task)
# The first of each is the one that decides where nothing else is said.
METRICS: dict[Task, tuple[Metric, ...]] = {
    "classification": ("accuracy", "balanced_accuracy", "macro_f1"),
    "multilabel": ("mean_average_precision", "macro_f1"),
    "regression": ("r2",),
    "segmentation": ("mean_iou",),
}
METRIC_NAMES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "mean_average_precision": "mean average precision",
    "r2": "R²",
    "mean_iou": "mean IoU",
}
# What the metric of a task is made of, class by class.
CLASS_MEASURES: dict[Task, str] = {
    "classification": "recall",
    "multilabel": "average precision",
    "regression": "R²",
    "segmentation": "IoU",
}


def choose_metric(task: Task, metric: Literal["auto", Metric]) -> Metric:
    """Choose what a target is a value of.

    Args:
        task: of the data.
        metric: as asked for; ``auto`` takes the task's own.

    Returns:
        The metric.

    Raises:
        UsageError: when it says nothing about that task.
    """
    if metric == "auto":
        return METRICS[task][0]
    if metric not in METRICS[task]:
        raise UsageError(f"--metric {metric} for {task}; allowed: {', '.join(METRICS[task])}")
    return metric
