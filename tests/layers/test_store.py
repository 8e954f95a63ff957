import logging
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from autocomp.core.errors import StoreError
from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.formats.base import CompressedWeight
from autocomp.layers import store as store_module
from autocomp.layers.store import LayerStore, StoreKey, content_digest
from autocomp.testing.plans import LINEAR_TOKENS

KEY = StoreKey("model", "base", "layer.0", "rtn-w4g16", "stats", "rtn@1", "uniform@1")


def weight(token: str = "rtn-w4g16", seed: int = 0) -> CompressedWeight:
    dense = torch.randn(48, 64, generator=torch.Generator().manual_seed(seed))
    compress = load_object("autocomp.methods.compose:compress")
    return compress(dense, LayerSpec.parse(token), None, "float16")


def test_files_of_another_version_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = LayerStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "FILE_VERSION", 1)
        older = store.path(KEY)
        older.parent.mkdir(parents=True)
        older.write_bytes(b"of another layout")
    assert store.get(KEY) is None
    store.put(KEY, weight())
    assert store.get(KEY) is not None
    assert older.read_bytes() == b"of another layout"
    assert not caplog.records


@pytest.mark.parametrize("token", LINEAR_TOKENS)
def test_round_trip_is_exact(token: str, tmp_path: Path) -> None:
    store, written = LayerStore(tmp_path), weight(token)
    assert store.get(KEY) is None
    store.put(KEY, written)
    found = store.get(KEY)
    assert found is not None
    assert found.layout == written.layout
    assert found.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(found.tensors[name], written.tensors[name]) for name in found.tensors)
    assert torch.equal(found.to_dense(), written.to_dense())


def test_every_field_of_the_key_matters(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    store.put(KEY, weight())
    for field in fields(KEY):
        assert store.get(replace(KEY, **{field.name: "other"})) is None
    assert store.get(KEY) is not None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign", "header"])
def test_damage_is_said_removed_and_rebuilt(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = LayerStore(tmp_path)
    store.put(KEY, weight())
    path = store.path(KEY)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 4
    elif damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    elif damage == "header":
        data[:8] = b"\xff" * 8
    else:
        other = replace(KEY, site="layer.1")
        store.put(other, weight(seed=1))
        data = bytearray(store.path(other).read_bytes())
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert store.get(KEY) is None
    assert "layer.0" in caplog.text
    assert not path.exists()
    store.put(KEY, weight())
    assert store.get(KEY) is not None


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    keys = [replace(KEY, site=f"layer.{index}") for index in range(6)]
    for age, key in enumerate(keys):
        store.put(key, weight())
        os.utime(store.path(key), (1000 + age, 1000 + age))
    size = store.path(keys[0]).stat().st_size
    assert store.usage() == store_module.StoreUsage(entries=6, bytes=6 * size)
    assert store.get(keys[0]) is not None
    assert store.prune(3 * size).entries == 3
    assert [store.get(key) is not None for key in keys] == [True, False, False, False, True, True]


def test_size_stays_bounded(tmp_path: Path) -> None:
    probe = LayerStore(tmp_path / "probe")
    probe.put(KEY, weight())
    size = probe.usage().bytes
    store = LayerStore(tmp_path / "store", max_bytes=5 * size)
    for index in range(20):
        store.put(replace(KEY, site=f"layer.{index:02d}"), weight())
        assert store.usage().bytes <= 5 * size
    assert store.get(replace(KEY, site="layer.19")) is not None


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    store.put(KEY, weight())
    fresh = store.path(KEY).with_name(".fresh.part")
    stale = store.path(KEY).with_name(".stale.part")
    for path in (fresh, stale):
        path.write_bytes(b"half")
    old = time.time() - 2 * store_module.ABANDONED_SECONDS
    os.utime(stale, (old, old))
    assert store.usage().entries == 1
    assert fresh.exists()
    assert not stale.exists()


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("No space left on device")

    monkeypatch.setattr(store_module, "save", full)
    with pytest.raises(StoreError, match="prune"):
        LayerStore(tmp_path).put(KEY, weight())
    assert LayerStore(tmp_path).usage().entries == 0


def test_unwritable_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="AUTOCOMP_CACHE"):
        LayerStore(tmp_path / "file").put(KEY, weight())


def _work(root: Path, seed: int) -> int:
    store, wrong = LayerStore(root, max_bytes=60_000), 0
    for turn in range(30):
        index = (turn * 7 + seed) % 10
        key = replace(KEY, site=f"layer.{index}")
        found = store.get(key)
        if found is None:
            store.put(key, weight(seed=index))
        else:
            wrong += not torch.equal(found.to_dense(), weight(seed=index).to_dense())
    return wrong


def test_several_processes_share_a_store(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; from pathlib import Path; work = runpy.run_path(sys.argv[1])['_work']"
    )
    code += "; print(work(Path(sys.argv[2]), 0))"
    other = subprocess.Popen(
        [sys.executable, "-P", "-c", code, __file__, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seed = 1
    while other.poll() is None:
        assert _work(tmp_path, seed) == 0
        seed += 1
    output, errors = other.communicate()
    assert (output.strip(), errors) == ("0", "")
    assert 0 < LayerStore(tmp_path).usage().entries <= 10


def test_content_digest_sees_name_shape_dtype_and_value() -> None:
    base = torch.arange(6, dtype=torch.int16)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.reshape(2, 3)},
        {"a": base.view(torch.float16)},
        {"a": base + 1},
        {"a": base, "b": base},
        {"a": base[:0]},
    ]
    assert len({content_digest(tensors) for tensors in variants}) == len(variants)


def _block() -> dict[StoreKey, CompressedWeight]:
    tokens = ("rtn-w4g16", "rtn-w3g16", "dense")
    return {replace(KEY, token=token): weight(token, seed) for seed, token in enumerate(tokens)}


def test_entries_made_together_are_one_file(tmp_path: Path) -> None:
    store, block = LayerStore(tmp_path), _block()
    store.put_all({})
    assert store.usage() == store_module.StoreUsage(entries=0, bytes=0)
    store.put_all(block)
    size = store.path(KEY).stat().st_size
    assert store.usage() == store_module.StoreUsage(entries=3, bytes=size)
    for key, written in block.items():
        assert store.path(key).samefile(store.path(KEY))
        found = store.get(key)
        assert found is not None
        assert found.tensors.keys() == written.tensors.keys()
        assert torch.equal(found.to_dense(), written.to_dense())
    assert store.prune(0).entries == 0
    assert not any(store.path(key).exists() for key in block)


def test_damage_to_one_of_a_file_leaves_the_others(tmp_path: Path) -> None:
    store, block = LayerStore(tmp_path), _block()
    store.put_all(block)
    path = store.path(KEY)
    data = bytearray(path.read_bytes())
    codes = block[KEY].tensors["codes"].numpy().tobytes()
    data[data.index(codes)] ^= 1
    path.write_bytes(data)
    assert [store.get(key) is None for key in block] == [True, False, False]
    store.put(KEY, block[KEY])
    assert all(store.get(key) is not None for key in block)
    assert store.usage().entries == 3


def test_without_hard_links_each_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refused)
    store, block = LayerStore(tmp_path), _block()
    store.put_all(block)
    assert all(store.get(key) is not None for key in block)
    assert len({store.path(key).stat().st_ino for key in block}) == 3
