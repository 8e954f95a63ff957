"""Safetensors files whose size is known before they are written.

The writer and the size prediction share one function for the header, so a predicted size is the
size of the file, whatever version of safetensors is installed; the files are byte for byte those
of the safetensors library (a test compares them). Reading goes through that library.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autocomp.core.errors import StoreError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import tensor_info

METADATA_KEY = "autocomp"

# Names in the file, in the order in which the library writes dtypes: widest alignment first.
_DTYPES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_ORDER = {dtype: order for order, dtype in enumerate(_DTYPES)}
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_OFFSET_DIGITS = 15


def file_nbytes(infos: Mapping[str, TensorInfo], metadata: Mapping[str, Any] | None = None) -> int:
    """Return the exact size of the file that :func:`save` writes for such tensors, in bytes."""
    return len(_header(infos, metadata)) + sum(info.nbytes for info in infos.values())


def header_entry_bound(name: str, info: TensorInfo) -> int:
    """Return an upper bound of the header bytes that one more tensor costs.

    A file of fewer than 10^15 bytes is at most ``_ALIGNMENT − 1`` bytes longer than the sum of
    ``file_nbytes({}, metadata)`` and, over the tensors, of ``info.nbytes + header_entry_bound``.
    """
    widest = 10**_OFFSET_DIGITS - 1
    return len(_dump({name: _entry(info, widest, widest)}).encode()) - len("{}") + len(",")


def save(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a safetensors file atomically: a reader sees the old file, the new one, or none.

    Args:
        path: The file; its folder must exist.
        tensors: Contiguous or not, on any device.
        metadata: JSON values, stored as text under the single key ``autocomp``.

    Raises:
        StoreError: If a dtype has no name in the file or the file cannot be written.
    """
    infos = {name: tensor_info(tensor) for name, tensor in tensors.items()}
    header = _header(infos, metadata)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        try:
            with part.open("xb") as file:
                file.write(header)
                for name in _file_order(infos):
                    file.write(_raw_bytes(tensors[name]))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}. Check that the folder exists and is "
            f"writable and that the disk has {file_nbytes(infos, metadata)} bytes free."
        ) from error


def load(
    path: Path, *, device: str = "cpu", prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file.

    Args:
        path: The file.
        device: Where the tensors are put.
        prefix: Only tensors whose names begin so are read.

    Returns:
        The tensors by name, and the metadata given to :func:`save` (empty if there is none).

    Raises:
        StoreError: If the file is missing, truncated or damaged.
    """
    try:
        with safe_open(path, framework="pt", device=device) as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
            text = (file.metadata() or {}).get(METADATA_KEY)
        metadata = {} if text is None else json.loads(text)
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(
            f"cannot read {path}: {error}. "
            "The file is missing, truncated or damaged; make it again."
        ) from error
    return tensors, metadata


def _header(infos: Mapping[str, TensorInfo], metadata: Mapping[str, Any] | None) -> bytes:
    """Return the length prefix and the padded JSON header."""
    entries: dict[str, Any] = {}
    if metadata is not None:
        entries["__metadata__"] = {METADATA_KEY: _dump(metadata)}
    begin = 0
    for name in _file_order(infos):
        end = begin + infos[name].nbytes
        entries[name] = _entry(infos[name], begin, end)
        begin = end
    text = _dump(entries).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _file_order(infos: Mapping[str, TensorInfo]) -> list[str]:
    """Return the names in file order: by dtype, then by name.

    Raises:
        StoreError: If a dtype has no name in the file.
    """
    for name, info in infos.items():
        if info.dtype not in _DTYPES:
            raise StoreError(
                f"tensor {name!r} has the dtype {info.dtype}, which is not stored. "
                f"Use one of {', '.join(_DTYPES)}."
            )
    return sorted(infos, key=lambda name: (_ORDER[infos[name].dtype], name.encode()))


def _entry(info: TensorInfo, begin: int, end: int) -> dict[str, Any]:
    """Return the header entry of a tensor."""
    return {
        "dtype": _DTYPES[info.dtype],
        "shape": list(info.shape),
        "data_offsets": [begin, end],
    }


def _dump(value: Any) -> str:
    """Return compact JSON as the library writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's data, row-major."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
