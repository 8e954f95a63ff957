"""Reproducible seeds: a tree in which every random choice has a path."""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class SeedTree:
    """A node of the seed tree.

    ``SeedTree(0).child("trial", 7)`` is the same in every process and on every machine: the seed
    is the first 8 bytes of ``sha256(root / path...)``, reduced to 63 bits.
    """

    root: int
    path: tuple[str, ...] = ()

    def child(self, *names: str | int) -> "SeedTree":
        """Return the node below this one."""
        return SeedTree(self.root, self.path + tuple(str(name) for name in names))

    @property
    def seed(self) -> int:
        """A 63-bit integer for ``torch.Generator.manual_seed`` and the like."""
        text = "/".join((str(self.root), *self.path))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def numpy(self) -> np.random.Generator:
        """Return a fresh NumPy generator for this node."""
        return np.random.default_rng(self.seed)
