"""What surrounds the Triton kernels: launch tables, recording, compiling without a device."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autocomp.core.registry import KERNELS
from autocomp.kernels import _triton
from autocomp.testing.kernels import cases, triton_names

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(not _triton.LOADED, reason="triton is not installed")


@pytest.fixture
def tables(monkeypatch):
    found = {
        "": {"device": "", "toy": [{"up_to": {"rows": 4}, "BLOCK": 1}, {"BLOCK": 2}]},
        "H100": {"device": "H100", "toy": [{"up_to": {"rows": 2}, "BLOCK": 8}]},
    }
    monkeypatch.setattr(_triton, "_tables", lambda: found)
    _triton._table.cache_clear()
    _triton._options.cache_clear()
    yield
    _triton._table.cache_clear()
    _triton._options.cache_clear()


@pytest.mark.parametrize(
    ("device", "rows", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 2, 8),
        ("NVIDIA H100 80GB HBM3", 3, 1),
        ("NVIDIA A100", 4, 1),
        ("NVIDIA A100", 5, 2),
        ("", 5, 2),
    ],
)
def test_the_first_entry_that_holds(tables, device, rows, expected):
    assert _triton._options("toy", device, (("rows", rows),)) == {"BLOCK": expected}


def test_a_kernel_without_an_entry(tables):
    with pytest.raises(KeyError, match="no entry of 'other'"):
        _triton._options("other", "", ())


def test_every_kernel_has_an_entry_without_bounds():
    for name, entries in _triton._tables()[""].items():
        if name != "device":
            assert "up_to" not in entries[-1], name


@needs_triton
@pytest.mark.parametrize("name", triton_names())
def test_recording_launches_nothing(name):
    arguments = [
        a.to("meta") if isinstance(a, torch.Tensor) else a
        for a in cases(name, torch.float16)[-1].arguments
    ]
    known = next(each for each in KERNELS[name].backends if each.name == _triton.NAME)
    with _triton.recording() as found:
        result = known.run(*arguments)
    first = result[0] if isinstance(result, tuple) else result
    assert first.device.type == "meta"
    assert all(min(launch.grid) >= 1 for launch in found)
    assert found


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_device_the_reason_is_said():
    for name in triton_names():
        known = next(each for each in KERNELS[name].backends if each.name == _triton.NAME)
        reason = known.why_not(*cases(name, torch.float16)[-1].arguments)
        assert reason is not None, name


def test_triton_is_not_imported_where_it_is_of_no_use():
    code = (
        "import sys, torch\n"
        "import autocomp.kernels.weight_only_matmul as module\n"
        "known = module.weight_only_matmul.backends[0]\n"
        "print('triton' in sys.modules or torch.cuda.is_available(), known.why_not_here())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    if not torch.cuda.is_available():
        assert done.stdout.strip() == "False requires cuda", done.stderr


@needs_triton
def test_kernels_compile_without_a_device():
    command = [sys.executable, str(ROOT / "kernels" / "bench" / "aot.py"), "--quick", "--first"]
    command += ["--only", "weight_only_matmul", "--targets", "sm_90", "gfx942"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[4] for row in rows] == ["sm_90", "gfx942"]
    for row in rows:
        registers, _, spills, wide_loads = map(int, row[5:9])
        assert registers <= 255
        assert spills == 0
        assert wide_loads >= 1


@needs_triton
def test_bench_says_what_it_lacks(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    monkeypatch.syspath_prepend(str(ROOT / "kernels" / "bench"))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    main = runpy.run_path(str(ROOT / "kernels" / "bench" / "run.py"))["main"]
    assert main() == 2
    assert capsys.readouterr().err.strip().endswith("requires a CUDA device; torch sees none.")
