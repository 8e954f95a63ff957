"""Fixtures shared by all tests: a private cache and tiny models; nothing is downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Read when Triton is imported, which the kernels then see: they are interpreted on request.
    os.environ["TRITON_INTERPRET"] = "1"
    with suppress(ImportError):
        import triton  # noqa: F401

from autocomp import env
from autocomp.data import load_corpus
from autocomp.models.tiny import tiny, train_tiny


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's cache out of the tests; only the converted reference model is shared."""
    reference = env.reference_dir()
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMP_CACHE", str(folder))
        patch.setenv("AUTOCOMP_REFERENCE_CACHE", str(reference))
        for name in ("AUTOCOMP_STORAGE", "OPTUNA_STORAGE", "AUTOCOMP_LOG_LEVEL"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="session")
def tiny_llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama: GQA 4/2, width 64, 2 blocks, tied."""
    return tiny("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_gpt2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2: Conv1D, LayerNorm, biases, width 64, 2 blocks, tied."""
    return tiny("gpt2", tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def trained_llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama trained for two seconds, so that compressing it costs something."""
    folder = tiny("llama", tmp_path_factory.mktemp("models") / "trained-llama")
    train_tiny(folder, "\n\n".join(load_corpus("pydoc").calibration)[:20_000])
    return folder
