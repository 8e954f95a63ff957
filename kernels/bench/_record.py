"""Kernels as they would be launched, and how they compile without a device."""

import importlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from _case import Case
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from autocomp.core.registry import KERNELS
from autocomp.kernels._triton import NAME, Launch, recording

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float8_e4m3fn: "*fp8e4nv",
}
MULTIPLY_EIGHT_BITS = ("sm_90",)
"""Targets with products of E4M3; others take what a launch asks for in half precision."""

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compiler says of a kernel.

    Args:
        registers: Of a thread.
        shared_bytes: Of a program.
        spills: Bytes (CUDA) or registers (AMD) that did not fit.
        wide_loads: Instructions that read 16 bytes a thread.
    """

    registers: int
    shared_bytes: int
    spills: int
    wide_loads: int


def bench_files() -> dict[str, ModuleType]:
    """Return the bench files by the operation that they are about."""
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem in KERNELS)
    return {name: importlib.import_module(name) for name in names}


def launches(name: str, case: Case) -> list[Launch]:
    """Return what the Triton back-end of an operation launches for arguments on ``meta``."""
    known = next(each for each in KERNELS[name].backends if each.name == NAME)
    with recording() as found:
        known.run(*case.arguments)
    return found


def compiled(launch: Launch, target: str) -> Compiled:
    """Compile a launch for a target: the same types, divisibility and constants."""
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    names = launch.kernel.arg_names
    for place, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            aligned = isinstance(value, torch.Tensor) or value % 16 == 0
            types[name] = POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            attributes |= {(place,): [["tt.divisibility", 16]]} if aligned else {}
    for name in names[len(launch.arguments) :]:
        types[name], constants[name] = "constexpr", launch.options[name]
    if target not in MULTIPLY_EIGHT_BITS and constants.get("EIGHT"):
        constants["EIGHT"] = False
    options = {key: value for key, value in launch.options.items() if key not in names}
    source = ASTSource(launch.kernel, types, constants, attributes)
    found = triton.compile(source, target=TARGETS[target], options=options)
    shared = int(found.metadata.shared)
    if target.startswith("sm_"):
        return _of_ptx(found.asm["ptx"], TARGETS[target].arch, shared)
    return _of_amdgcn(found.asm["amdgcn"], shared)


def _of_ptx(text: str, arch: int, shared: int) -> Compiled:
    """Return what ``ptxas -v`` says of PTX; Triton's metadata has neither without a device."""
    match = re.search(r"^\.target (\w+)", text, re.MULTILINE)
    name = match.group(1) if match else f"sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(text, encoding="utf-8")
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={name}", str(path), "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = int(_number(r"Used (\d+) registers", said))
    spills = int(_number(r"(\d+) bytes spill stores", said))
    wide = len(re.findall(r"ld\.global\S*\.v4\.b32|cp\.async\S*[^;]*, (?:0x10|16)\b", text))
    return Compiled(registers, shared, spills, wide)


def _of_amdgcn(text: str, shared: int) -> Compiled:
    """Return what the AMD assembly says of itself."""
    registers = int(_number(r"\.vgpr_count:\s+(\d+)", text))
    spills = int(_number(r"\.vgpr_spill_count:\s+(\d+)", text))
    wide = len(re.findall(r"(?:global|buffer)_load_dwordx4", text))
    return Compiled(registers, shared, spills, wide)


def _number(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiler does not say {pattern!r}.")
    return match.group(1)
