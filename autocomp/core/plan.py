"""A decoded candidate: what is done to every site of a variant."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from autocomp.core.errors import PlanError
from autocomp.core.spec import DENSE, LayerSpec

PLAN_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 had a mapping of cache tokens that was always empty; caches are sites now."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One layer spec a site, by site name.

    Args:
        layers: Every site of the sketch exactly once: linears, embedding, caches, sub-blocks.
        variant: Name of the prepared architecture; ``base`` is the model as loaded.
        recovery: Token of a training step after compression, or ``None``.
    """

    layers: Mapping[str, LayerSpec]
    variant: str = "base"
    recovery: str | None = None

    def __post_init__(self) -> None:
        """Freeze the mapping, sorted by name."""
        object.__setattr__(self, "layers", MappingProxyType(dict(sorted(self.layers.items()))))

    def __hash__(self) -> int:
        """Hash by content."""
        return hash(self.digest)

    def __getitem__(self, site: str) -> LayerSpec:
        """Return the spec of a site; dense when the plan does not name it."""
        return self.layers.get(site, DENSE)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON form."""
        return {
            "plan_version": PLAN_VERSION,
            "variant": self.variant,
            "layers": {site: spec.token() for site, spec in self.layers.items()},
            "recovery": self.recovery,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """Return the plan of its JSON form.

        Raises:
            PlanError: If the version is newer than this program or the layers are missing.
        """
        version = data.get("plan_version")
        if version not in READABLE_VERSIONS:
            raise PlanError(
                f"plan version {version!r} cannot be read; this autocomp reads "
                f"{' and '.join(map(str, READABLE_VERSIONS))}. Use the autocomp that wrote it."
            )
        if not isinstance(data.get("layers"), Mapping):
            raise PlanError("the plan has no 'layers' object.")
        return cls(
            layers={site: LayerSpec.parse(token) for site, token in data["layers"].items()},
            variant=data.get("variant", "base"),
            recovery=data.get("recovery"),
        )

    def canonical(self) -> str:
        """Return the canonical JSON text that the digest is taken of."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """Sha256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()
