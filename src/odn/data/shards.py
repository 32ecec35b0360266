"""WebDataset shards: tar files whose members KEY.jpg and KEY.cls, or KEY.json with "label", make a sample.

Members of a plain tar file are ranges of its bytes. They are found once, and read where they stand, in any order and by
any process; nothing is unpacked.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from odn.data.labelled import labelled_source
from odn.data.sources import Source
from odn.errors import OdnError
from odn.images import ImageFile
from odn.split_names import files_by_split
from odn.tabular import Label, parse_label

_IMAGES = frozenset({"jpg", "jpeg", "png", "ppm", "pgm", "pbm", "webp", "bmp", "gif", "tif", "tiff"})
_MAX_LABEL_BYTES = 1024**2
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MAX_SHARDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside of a tar file.

    Attributes:
        shard: the tar file.
        name: of the member.
        offset: of its first byte in the tar file.
        size: in bytes, as its header says.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"

    def read_bytes(self) -> bytes:
        """Return its content."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def find_shards(dataset: str) -> dict[str, list[Path]]:
    """Find the shards that a dataset consists of.

    Args:
        dataset: a ``.tar`` file; a pattern such as ``train-{000..009}.tar``; or a folder of ``.tar`` files, with
            those of the splits in folders ``train valid test``, or told apart by how their names begin.

    Returns:
        The files by split, ``train`` among them; nothing when it is another kind of dataset.
    """
    path = Path(dataset)
    if path.suffix.lower() == ".tar":
        return {"train": _expand(dataset)}
    return files_by_split(path, "*.tar")


def _expand(pattern: str) -> list[Path]:
    match = _RANGE.search(pattern)
    if match is None:
        if not Path(pattern).is_file():
            raise OdnError(f"the shard {pattern} is missing; restore it, or name those that are there")
        return [Path(pattern)]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _MAX_SHARDS:
        raise OdnError(f"{pattern} asks for shards {first} to {last}; allowed: ascending, up to {_MAX_SHARDS:,}")
    names = [f"{pattern[: match.start()]}{n:0{len(match[1])}d}{pattern[match.end() :]}" for n in range(first, last + 1)]
    return [path for name in names for path in _expand(name)]


def read_shards(dataset: str) -> Source:
    """Index the shards of a dataset.

    Args:
        dataset: what ``find_shards`` finds some in.

    Returns:
        Where the images stand, and their labels; no image has been read.
    """
    samples: dict[str, Sequence[str] | Sequence[ImageFile]] = {}
    labels: dict[str, list[tuple[Label, str]]] = {}
    for split, shards in find_shards(dataset).items():
        pairs = [pair for shard in shards for pair in _index(shard)]
        samples[split] = [image for image, _ in pairs]
        labels[split] = [(label, str(image)) for image, label in pairs]
    return labelled_source(_RANGE.sub("", Path(dataset).resolve().stem), samples, labels, texts=False)


def _index(shard: Path) -> Iterator[tuple[Member, str]]:
    """Yield the images of a shard with their labels; of labels the text is read, of images the header of the tar."""
    key, count = "", 0
    parts: dict[str, Member] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for found, name, member in _members(shard, archive):
                if found != key and parts:
                    yield _sample(shard, key, parts)
                    count, parts = count + 1, {}
                key = found
                if name in parts:
                    raise OdnError(f"{shard} holds {member.name} twice; write the shard again")
                parts[name] = member
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise OdnError(f"the shard {shard} is damaged ({reason}); restore it or leave it out") from error
    if parts:
        yield _sample(shard, key, parts)
        count += 1
    if not count:
        raise OdnError(f"the shard {shard} holds no samples; leave it out")


def _members(shard: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, str, Member]]:
    size = shard.stat().st_size
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # or it would keep the header of every member
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise OdnError(f"{shard} holds {info.name[:200]}, which is no plain file; write the shard again")
        if info.offset_data + info.size > size:
            raise tarfile.ReadError("unexpected end of data")
        folder, _, base = info.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem:
            continue  # a hidden file, such as those of macOS
        yield f"{folder}/{stem}", extension.lower(), Member(shard, info.name, info.offset_data, info.size)
    with shard.open("rb") as file:  # the reader takes a file that was cut between two members for complete
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it has no end mark, so it was cut short")


def _sample(shard: Path, key: str, parts: dict[str, Member]) -> tuple[Member, str]:
    where = f"{shard}: sample '{key.lstrip('/')}'"
    images = [member for extension, member in parts.items() if extension in _IMAGES]
    if len(images) != 1:
        there = ", ".join(parts)
        raise OdnError(f"{where} has {len(images) or 'no'} images among {there}; one is needed, e.g. KEY.jpg")
    source = parts.get("cls") or parts.get("json")
    if source is None:
        raise OdnError(f"{where} has no label; add KEY.cls, or KEY.json with 'label'")
    if source.size > _MAX_LABEL_BYTES:
        raise OdnError(f"{source} has {source.size:,} bytes; allowed for a label: up to {_MAX_LABEL_BYTES:,}")
    try:
        content: object = source.read_bytes().decode()
        if source is not parts.get("cls"):
            table = json.loads(str(content))
            if not isinstance(table, dict) or "label" not in table:
                raise OdnError(f"{where} has no label: {source.name} has no 'label'; add it")
            content = table["label"]
    except (ValueError, RecursionError) as error:
        raise OdnError(f"{source} is damaged ({str(error)[:80]}); write the shard again") from error
    return images[0], parse_label(content, where)
