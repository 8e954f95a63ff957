"""What a roofline needs of a device: two peak figures, from ``devices/*.toml``.

The shipped files hold figures of vendors. ``autocomp bench --calibrate`` measures those of this
machine and writes a file of the same form below :func:`autocomp.env.devices_dir`.
"""

import json
import os
import re
import tomllib
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from autocomp.core.errors import ConfigError, StoreError
from autocomp.core.registry import nearest
from autocomp.env import devices_dir

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator or a processor.

    Args:
        name: As its vendor calls it.
        memory_bandwidth_bytes_per_s: Peak bandwidth of its memory.
        peak_flops_per_s: Peak of its matrix products in the dtype of its bodies: 16 bits, dense,
            accumulated in fp32, where the file says nothing else.
        source: Where the figures are published, or how they were measured.
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
            StoreError: If the file is damaged.
        """
        found = _files()
        if name not in found:
            raise ConfigError(
                f"unknown device {name!r} for the cost of a time.{nearest(name, list(found))} "
                f"Known: {', '.join(found)}. Set budget.device (--cost-device), or measure this "
                "machine: autocomp bench --calibrate."
            )
        try:
            return cls(**tomllib.loads(found[name].read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise StoreError(f"{found[name]} describes no device: {error}") from error

    def seconds(self, size: float, flops: float) -> float:
        """Return the least time to read bytes and to compute: the longer of the two, seconds."""
        reading = size / self.memory_bandwidth_bytes_per_s
        return max(reading, flops / self.peak_flops_per_s)

    def save(self, name: str) -> Path:
        """Write the file by which :meth:`named` finds the device; return its path.

        Args:
            name: Lower-case letters, digits, dots and dashes.

        Raises:
            ConfigError: If a device of that name is shipped, or the name is no file name.
        """
        if not NAME.fullmatch(name) or name in _shipped():
            raise ConfigError(
                f"a measured device cannot be called {name!r}: use lower-case letters, digits, "
                f"dots and dashes, and none of {', '.join(_shipped())}."
            )
        lines = [f"{key} = {json.dumps(value)}" for key, value in asdict(self).items()]
        path = devices_dir() / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path


def device_names() -> tuple[str, ...]:
    """Return the names of all devices: shipped ones, then measured ones, each in order."""
    return tuple(_files())


def _files() -> dict[str, Traversable]:
    """Return the file of each device; a shipped one goes before a measured one."""
    shipped = _shipped()
    measured = _named(devices_dir()) if devices_dir().is_dir() else {}
    return shipped | {name: file for name, file in measured.items() if name not in shipped}


def _shipped() -> dict[str, Traversable]:
    return _named(resources.files("autocomp.cost") / "devices")


def _named(folder: Traversable) -> dict[str, Traversable]:
    files = sorted(folder.iterdir(), key=lambda item: item.name)
    return {f.name.removesuffix(".toml"): f for f in files if f.name.endswith(".toml")}
