"""The content digest of a model folder: what the layer store and studies are keyed by."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from autocomp import env
from autocomp.core.errors import ConfigError

_COSMETIC = ("_name_or_path", "transformers_version", "use_cache")


def model_digest(folder: Path) -> str:
    """Return the sha256 of a folder's config and weight bytes, hexadecimal.

    Left out are tokenizer files and the keys of ``config.json`` that do not change what the
    weights mean.

    Raises:
        ConfigError: If the folder holds no safetensors file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"{folder} holds no *.safetensors file; convert the checkpoint to safetensors first "
            "(pickled weights are never read)."
        )
    config = json.loads((folder / "config.json").read_text())
    semantic = {key: value for key, value in config.items() if key not in _COSMETIC}
    parts = [json.dumps(semantic, sort_keys=True), *(_file_digest(file) for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """Return a file's sha256, remembered by path, size and modification time."""
    path = path.resolve()
    status = path.stat()
    identity = f"{path}\n{status.st_size}\n{status.st_mtime_ns}"
    name = hashlib.sha256(identity.encode()).hexdigest()
    record = env.cache_dir() / "digests" / name
    if record.exists():
        return record.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _remember(record, digest)
    return digest


def _remember(record: Path, digest: str) -> None:
    """Write a record in one step; a cache that cannot be written costs time, not correctness."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=record.parent)
        with os.fdopen(handle, "w") as file:
            file.write(digest)
        os.replace(temporary, record)
    except OSError:
        return
