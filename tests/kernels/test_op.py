"""Which back-end runs, on a toy operation and on the real ones."""

import threading

import pytest
import torch
from torch import Tensor

from autocomp.kernels import _machine
from autocomp.kernels._op import Operation, operation
from autocomp.kernels.weight_only_matmul import weight_only_matmul


@pytest.fixture
def doubled() -> Operation:
    @operation
    def doubled(values: Tensor, times: int) -> Tensor:
        """Twice the values."""
        return values * 2

    @doubled.backend(
        "few", priority=5, check=lambda values, times: "too many" if len(values) > 2 else None
    )
    def _few(values: Tensor, times: int) -> Tensor:
        """For few values."""
        return values + values

    @doubled.backend("half", priority=9, dtypes=("float16",), devices=("cpu",))
    def _half(values: Tensor, times: int) -> Tensor:
        """For half precision."""
        return values + values

    @doubled.backend("nowhere", priority=20, requires=lambda: "a part that is not there")
    def _nowhere(values: Tensor, times: int) -> Tensor:
        """For no machine."""
        raise AssertionError

    return doubled


def test_the_usable_one_of_highest_priority_runs(doubled):
    assert doubled.names == ("nowhere", "half", "few", "reference")
    assert doubled.choose(torch.ones(1, dtype=torch.float16), 2).name == "half"
    assert doubled.choose(torch.ones(2), 2).name == "few"
    assert doubled.choose(torch.ones(3), 2).name == "reference"
    assert torch.equal(doubled(torch.ones(3), times=2), torch.full((3,), 2.0))


def test_every_other_says_why(doubled):
    assert doubled.explain(torch.ones(3), 2) == {
        "nowhere": "a part that is not there",
        "half": "requires float16, the input is float32",
        "few": "too many",
        "reference": None,
    }
    meta = torch.ones(1, dtype=torch.float16, device="meta")
    assert doubled.explain(meta, 2)["half"] == "requires cpu, the input is on meta"


def test_pins_hold_for_the_context_and_the_thread(doubled):
    seen = []
    with doubled.pinned("few"):
        with doubled.pinned("reference"):
            assert doubled.choose(torch.ones(1), 2).name == "reference"
        assert doubled.choose(torch.ones(1, dtype=torch.float16), 2).name == "few"
        other = threading.Thread(
            target=lambda: seen.append(doubled.choose(torch.ones(1).half(), 2).name)
        )
        other.start()
        other.join()
        with pytest.raises(ValueError, match="few cannot run: too many"):
            doubled(torch.ones(3), 2)
    assert seen == ["half"]
    assert doubled.choose(torch.ones(1, dtype=torch.float16), 2).name == "half"


def test_pinning_what_is_not_there(doubled):
    with pytest.raises(ValueError, match="no back-end 'triton'"), doubled.pinned("triton"):
        pass


@pytest.mark.parametrize(("name", "priority"), [("few", 7), ("new", 0)])
def test_a_name_twice_or_no_priority(doubled, name, priority):
    with pytest.raises(ValueError, match="a name of its own"):
        doubled.backend(name, priority=priority)


def test_it_documents_itself(doubled):
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Twice the values.")
    assert [known.summary for known in doubled.backends][-1] == "Twice the values."
    assert doubled.backends[0].why_not_here() == "a part that is not there"


def test_a_device_that_is_not_there(doubled):
    doubled.backend("card", priority=30, devices=("cuda",))(lambda values, times: values)
    expected = None if torch.cuda.is_available() else "requires cuda"
    assert doubled.backends[0].why_not_here() == expected


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "groups", "expected"),
    [
        (1, 64, 4, 1, "takes 8 bits and one scale a row, got 4 bits and 1 scales"),
        (1, 64, 8, 2, "takes 8 bits and one scale a row, got 8 bits and 2 scales"),
        (1, 123, 8, 1, "takes inputs divisible by 32, got 123"),
        (17, 64, 8, 1, "takes 1 to 16 rows, more are faster decoded first, got 17"),
    ],
)
def test_why_not_int8(monkeypatch, rows, columns, bits, groups, expected):
    packed = next(known for known in weight_only_matmul.backends if known.name == "int8pack")
    inputs = torch.zeros(rows, columns, dtype=torch.bfloat16)
    codes = torch.zeros(8, columns * bits // 8, dtype=torch.uint8)
    found = packed.check(inputs, codes, torch.ones(8, groups).half(), None, bits)
    assert found == expected
    float32 = packed.why_not(inputs.float(), codes, torch.ones(8, 1).half(), None, bits)
    assert float32 == "requires bfloat16, the input is float32"


@pytest.mark.parametrize(("machine", "level"), [("aarch64", "DEFAULT"), ("x86_64", "DEFAULT")])
def test_other_processors_say_what_they_lack(monkeypatch, machine, level):
    monkeypatch.setattr(_machine.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    assert _machine.lacks_packed_bf16.__wrapped__() == (
        f"requires x86 with AVX2 or AVX512, this processor gives torch {level}"
    )


def test_half_precision_pays_where_the_processor_has_it(monkeypatch):
    for native, expected in ((True, None), (False, "this processor emulates bfloat16 products")):
        monkeypatch.setattr(_machine, "_multiplies_bf16", lambda found=native: found)
        assert _machine.emulates.__wrapped__(torch.bfloat16, "cpu") == expected
    assert _machine.emulates.__wrapped__(torch.float16, "cpu").endswith("float16 products")
    assert _machine.emulates.__wrapped__(torch.float16, "cuda") is None
