import json
import os

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.core.errors import StoreError
from autocomp.core.sketch import DTYPE_BYTES, TensorInfo
from autocomp.formats import io

INFOS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.builds(
        TensorInfo,
        st.lists(st.integers(0, 9), max_size=3).map(tuple),
        st.sampled_from(list(DTYPE_BYTES)),
    ),
    max_size=12,
)
METADATA = st.none() | st.dictionaries(st.text(max_size=6), st.integers() | st.text(max_size=9))


def make(infos):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 2, info.shape, generator=generator).to(getattr(torch, info.dtype))
        for name, info in infos.items()
    }


@settings(max_examples=150, deadline=None)
@given(infos=INFOS, metadata=METADATA)
def test_files_are_those_of_the_library_and_sizes_are_exact(tmp_path_factory, infos, metadata):
    path = tmp_path_factory.getbasetemp() / "layout.safetensors"
    tensors = make(infos)
    io.save(path, tensors, metadata)
    content = path.read_bytes()
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
    library = None if metadata is None else {io.METADATA_KEY: text}
    assert content == safetensors.torch.save(tensors, library)
    assert len(content) == io.file_nbytes(infos, metadata)
    loaded, found = io.load(path)
    assert found == (metadata or {})
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@settings(max_examples=100, deadline=None)
@given(infos=INFOS, metadata=METADATA)
def test_header_bound_is_an_upper_bound_and_tight(infos, metadata):
    bound = io.file_nbytes({}, metadata) + 7
    bound += sum(info.nbytes + io.header_entry_bound(name, info) for name, info in infos.items())
    size = io.file_nbytes(infos, metadata)
    assert size <= bound <= size + 16 + 31 * len(infos)


def test_size_of_a_large_layout_needs_no_tensors():
    infos = {f"layer.{i}": TensorInfo((4096, 4096), "bfloat16") for i in range(300)}
    size = io.file_nbytes(infos)
    assert size % 8 == 0
    assert 300 * 2**25 < size < 300 * (2**25 + 100)


def test_views_and_transposes_are_written_row_major(tmp_path):
    tensor = torch.arange(12.0).view(3, 4)
    io.save(tmp_path / "x", {"t": tensor.T, "s": tensor[:, 1:3]})
    loaded, _ = io.load(tmp_path / "x")
    assert torch.equal(loaded["t"], tensor.T)
    assert torch.equal(loaded["s"], tensor[:, 1:3])


def test_overwrite_leaves_one_file(tmp_path):
    for value in (1.0, 2.0):
        io.save(tmp_path / "x", {"t": torch.tensor([value])})
    assert io.load(tmp_path / "x")[0]["t"].item() == 2.0
    assert os.listdir(tmp_path) == ["x"]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    io.save(tmp_path / "x", {"t": torch.ones(1)})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        io.save(tmp_path / "x", {"t": torch.zeros(1)})
    assert io.load(tmp_path / "x")[0]["t"].item() == 1.0
    assert os.listdir(tmp_path) == ["x"]


def test_missing_folder(tmp_path):
    with pytest.raises(StoreError, match="folder exists"):
        io.save(tmp_path / "no" / "x", {})


def test_unknown_dtype(tmp_path):
    with pytest.raises(StoreError, match="complex64"):
        io.save(tmp_path / "x", {"t": torch.zeros(1, dtype=torch.complex64)})


def test_missing_truncated_and_damaged_files(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(StoreError, match="missing"):
        io.load(path)
    io.save(path, {"t": torch.zeros(100)}, {"a": 1})
    content = path.read_bytes()
    for damaged in (content[:-1], content[:20], b"", b"\xff" * 64, content.replace(b"a", b"\xff")):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="cannot read"):
            io.load(path)
