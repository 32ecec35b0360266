"""What ``torchrun`` tells a process about itself, by environment variables. No torch here."""

import os


def launched() -> bool:
    """Return whether ``torchrun`` started this process.

    Returns:
        True under ``torchrun``.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarts() -> int:
    """Return how often ``torchrun`` has started the processes again after one of them had failed.

    Returns:
        0 at the first attempt.
    """
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def rank() -> int:
    """Return the number of this process, from 0.

    Returns:
        0 for the first process, and for a single one.
    """
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes that work together.

    Returns:
        1 without ``torchrun``.
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of those processes that run on this machine.

    Returns:
        1 without ``torchrun``.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
