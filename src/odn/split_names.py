"""Which files and folders of a dataset are for training, validation and test, by their names. No torch here."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from odn.errors import OdnError

Thing = TypeVar("Thing")
_log = logging.getLogger(__name__)
_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}
_BEGINNING = re.compile(rf"({'|'.join(_SPLITS)})([^a-z]|$)")


def split_of(name: str) -> str | None:
    """Tell what a file or folder of some name is for.

    Args:
        name: without a suffix; capitals do not count.

    Returns:
        ``train``, ``valid`` or ``test``; None for another name.
    """
    return _SPLITS.get(name.lower())


def one_per_split(things: Iterable[Thing], name: Callable[[Thing], str], where: object) -> dict[str, Thing]:
    """Find out which file, folder or part is which split.

    Args:
        things: whatever has names.
        name: of a thing, without a suffix.
        where: what holds them, for messages.

    Returns:
        The things by split, those of no split left out.

    Raises:
        OdnError: when two are for the same.
    """
    found: dict[str, Thing] = {}
    for thing in things:
        split = split_of(name(thing))
        if split is None:
            continue
        if split in found:
            here, there = (getattr(each, "name", each) for each in (found[split], thing))
            raise OdnError(f"{where} holds {here} and {there}, both for {split}; keep one of them")
        found[split] = thing
    return {split: found[split] for split in _NAMES if split in found}


def tell_left_out(where: object, names: Sequence[object], why: str) -> None:
    """Say what of a dataset is not read; nothing is left out silently.

    Args:
        where: the dataset or a part of it.
        names: of what is not read; nothing is said of none.
        why: in a few words.
    """
    if names:
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        _log.warning("%s: left out %s%s, %s", where, ", ".join(map(str, names[:3])), more, why)


def entries(folder: Path) -> list[Path]:
    """List what lies in a folder, hidden things excepted.

    Args:
        folder: to be listed.

    Returns:
        Its entries, sorted; none where it is no folder.

    Raises:
        OdnError: when it cannot be read.
    """
    if not folder.is_dir():
        return []
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise OdnError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error


def files_by_split(path: Path, pattern: str) -> dict[str, list[Path]]:
    """Find the files of a folder by split: in folders of its name, or told apart by how their names begin.

    Args:
        path: the folder.
        pattern: of their names, e.g. ``*.tar``.

    Returns:
        Sorted files by split, ``train`` among them: all of them where no name begins as that of a split does; nothing
        when there are none.

    Raises:
        OdnError: when there are splits, but none to train on, or a file belongs to none.
    """
    named = [entry for entry in entries(path) if split_of(entry.name)]  # other folders may be large, and are none
    holding = {entry.name: files for entry in named if (files := _matching(entry, pattern))}
    found = {split: holding[name] for split, name in one_per_split(holding, str, path).items()}
    rest = []
    for file in [] if found else _matching(path, pattern):
        match = _BEGINNING.match(file.stem.lower())
        if match:
            found.setdefault(_SPLITS[match[1]], []).append(file)
        else:
            rest.append(file)
    if not found:
        return {"train": rest} if rest else {}
    if rest:
        raise OdnError(f"{rest[0]} belongs to no split; allowed: names that begin with train, valid or test")
    if "train" not in found:
        raise OdnError(f"{path} has files for {' and '.join(found)}, but none for train; add some")
    return found


def _matching(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []
