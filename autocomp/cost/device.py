"""What a roofline needs of a device: two peak figures, from ``devices/*.toml``."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from autocomp.core.errors import ConfigError
from autocomp.core.registry import nearest


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator.

    Args:
        name: As its vendor calls it.
        memory_bandwidth_bytes_per_s: Peak bandwidth of its memory.
        peak_flops_per_s: Peak of its 16-bit matrix products, dense, accumulated in fp32.
        source: Where the figures are published.
    """

    name: str
    memory_bandwidth_bytes_per_s: float
    peak_flops_per_s: float
    source: str

    @classmethod
    def named(cls, name: str) -> "Device":
        """Return a device by the name of its file, such as ``h100``.

        Raises:
            ConfigError: If there is no such file; the message lists the nearest names.
        """
        found = _files()
        if name not in found:
            raise ConfigError(
                f"unknown device {name!r} for the cost of decoding.{nearest(name, list(found))} "
                f"Known: {', '.join(found)}. Set budget.device (--cost-device)."
            )
        return cls(**tomllib.loads(found[name].read_text(encoding="utf-8")))


def device_names() -> tuple[str, ...]:
    """Return the names of all devices, in alphabetical order."""
    return tuple(_files())


def _files() -> dict[str, Traversable]:
    folder = resources.files("autocomp.cost") / "devices"
    files = sorted(folder.iterdir(), key=lambda item: item.name)
    return {f.name.removesuffix(".toml"): f for f in files if f.name.endswith(".toml")}
