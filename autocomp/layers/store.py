"""The layer store: a bounded, shared, content-addressed cache of compressed layers on disk.

An entry is named by the sha256 of everything that decides its content. Entries that are made
together, such as all options of a block, are one safetensors file, to which the name of each is a
hard link. Entries are written whole or not at all, checked when read, and dropped (with a warning)
when damaged, so a store can be shared by several processes, killed at any moment, or deleted.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor, uint8

from autocomp.core.errors import AutocompError, StoreError
from autocomp.formats.base import CompressedWeight, format_from_json, joined, within
from autocomp.formats.io import load, save

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 20_000_000_000
RESCAN_PUTS = 256
ABANDONED_SECONDS = 3600
FILE_VERSION = 2
"""Part of the names of entries, so that files of another layout are not taken for damaged."""


@dataclass(frozen=True, slots=True)
class StoreKey:
    """Everything that decides the content of an entry.

    Args:
        model_digest: Digest of the model's config and weights.
        variant: Name of the prepared architecture.
        site: Module name.
        token: Token of the layer spec.
        stats_digest: Digest of the calibration statistics; empty when the methods use none.
        method_version: Versions of the methods of the spec.
        format_version: Version of the packed format.
    """

    model_digest: str
    variant: str
    site: str
    token: str
    stats_digest: str
    method_version: str
    format_version: str

    @property
    def digest(self) -> str:
        """Sha256 of the fields and of the version of files, hexadecimal; the entry's name."""
        named = {"file_version": FILE_VERSION, **asdict(self)}
        text = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Number of entries and their bytes on disk."""

    entries: int
    bytes: int


@dataclass(slots=True)
class _File:
    """A file, with its last use, its size and the names under which it holds an entry each."""

    used: float
    bytes: int
    paths: list[Path] = field(default_factory=list)


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, dtypes, shapes and bytes of the tensors, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(-1).view(uint8).numpy().data)
    return digest.hexdigest()


class LayerStore:
    """A folder of compressed layers with a bounded size, least recently used dropped first.

    Args:
        root: The folder; created when the first entry is written.
        max_bytes: Largest size on disk in bytes.
    """

    def __init__(self, root: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.root = Path(root)
        self.max_bytes = int(max_bytes)
        self._bytes = 0
        self._puts = 0

    def path(self, key: StoreKey) -> Path:
        """Return where the entry of ``key`` lies, whether it exists or not."""
        return self.root / key.digest[:2] / f"{key.digest}.safetensors"

    def get(self, key: StoreKey) -> CompressedWeight | None:
        """Return the entry of ``key``, or ``None`` when there is none that can be trusted.

        A truncated, altered or foreign entry is reported in the log, removed, and counts as
        absent.
        """
        path = self.path(key)
        try:
            tensors, metadata = load(path, prefix=f"{key.digest}.")
            tensors, about = within(tensors, key.digest), metadata["entries"][key.digest]
            if about["key"] != asdict(key):
                raise StoreError("it belongs to another key")
            if about["sha256"] != content_digest(tensors):
                raise StoreError("its content does not match its checksum")
            weight = CompressedWeight(format_from_json(about["layout"]), tensors)
            weight.check()
            os.utime(path)
        except (AutocompError, OSError, KeyError) as error:
            if not path.exists():
                return None  # never written, or dropped by another process
            logger.warning(
                "layer store: dropping the damaged %s (%s, %s): %s. It will be computed again.",
                path,
                key.site,
                key.token,
                error,
            )
            path.unlink(missing_ok=True)
            return None
        return weight

    def put(self, key: StoreKey, weight: CompressedWeight) -> None:
        """Write an entry, replacing one of the same key.

        Raises:
            StoreError: If the disk is full or the store cannot be written; no partial entry
                remains.
        """
        self.put_all({key: weight})

    def put_all(self, entries: Mapping[StoreKey, CompressedWeight]) -> None:
        """Write entries in one file, replacing those of the same keys.

        Where the disk knows no hard links each gets a file of its own.

        Raises:
            StoreError: If the disk is full or the store cannot be written; no partial entry
                remains.
        """
        if not entries:
            return
        first, *rest = entries
        try:
            self._write(self.path(first), entries)
            for key in rest:
                self._name(key, self.path(first), entries[key])
            size = self.path(first).stat().st_size
        except FileNotFoundError:
            return  # another process has already dropped the file
        except OSError as error:
            raise StoreError(
                f"cannot write the layer store at {self.root}: {error}. Free some space, "
                "shrink it with 'autocomp store --prune 5GB', or set AUTOCOMP_CACHE elsewhere."
            ) from error
        self._keep_bounded(size)

    def _write(self, path: Path, entries: Mapping[StoreKey, CompressedWeight]) -> None:
        """Write the file of some entries."""
        parts = {key.digest: weight.tensors for key, weight in entries.items()}
        about = {
            key.digest: {
                "key": asdict(key),
                "layout": weight.layout.to_json(),
                "sha256": content_digest(weight.tensors),
            }
            for key, weight in entries.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, joined(parts), {"entries": about})

    def _name(self, key: StoreKey, file: Path, weight: CompressedWeight) -> None:
        """Give a file the name of one more entry that it holds."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        link = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            os.link(file, link)
        except FileNotFoundError:
            raise
        except OSError:
            self._write(path, {key: weight})
        else:
            link.replace(path)

    def _keep_bounded(self, added: int) -> None:
        """Prune when the estimate passes the limit; look again every few hundred entries."""
        if self._puts % RESCAN_PUTS == 0:
            self._bytes = self.usage().bytes
        else:
            self._bytes += added
        self._puts += 1
        if self._bytes > self.max_bytes:
            self._bytes = self.prune(int(0.9 * self.max_bytes)).bytes

    def usage(self) -> StoreUsage:
        """Return the number of entries and their bytes on disk."""
        files = self._files()
        return StoreUsage(
            entries=sum(len(file.paths) for file in files), bytes=sum(file.bytes for file in files)
        )

    def prune(self, max_bytes: int) -> StoreUsage:
        """Drop the least recently used files until the rest fits; return what is left."""
        files = sorted(self._files(), key=lambda file: (file.used, file.paths))
        total = sum(file.bytes for file in files)
        left = sum(len(file.paths) for file in files)
        dropped = 0
        for file in files:
            if total <= max_bytes:
                break
            for path in file.paths:
                path.unlink(missing_ok=True)
            total -= file.bytes
            dropped += len(file.paths)
        if dropped:
            logger.info("layer store: dropped %d of %d entries", dropped, left)
        return StoreUsage(entries=left - dropped, bytes=total)

    def _files(self) -> list[_File]:
        """Return all files; removes what killed writers left."""
        files: dict[tuple[int, int], _File] = {}
        for path in self.root.glob("??/*"):
            try:
                status = path.stat()
                if path.suffix == ".safetensors" and not path.name.startswith("."):
                    file = _File(status.st_mtime, status.st_size)
                    files.setdefault((status.st_dev, status.st_ino), file).paths.append(path)
                elif time.time() - status.st_mtime > ABANDONED_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue  # dropped by another process meanwhile
        return list(files.values())
