"""Memory and speed of a loaded native model: packed, decoded, and the dense model it came from.

``python studies/packed-runtime/measure.py FOLDER`` measures the native model in FOLDER (see the
README for the command that makes one). Every way of running it gets processes of its own, one
after the other, in turns; what a process takes before it loads a model is subtracted. With
``--llama GGUF --node FOLDER``, llama.cpp takes its turns too.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from autocomp.cli.libraries import quiet_libraries
from autocomp.evaluate.record import hardware, versions
from autocomp.layers.linear import CompressedModule
from autocomp.layers.native import WEIGHTS_FILE, load, native_sketch
from autocomp.models import load as load_dense

OUT = Path(__file__).parent / "results" / "packed-runtime.json"
SCRIPT = Path(__file__).parent / "llama.mjs"


class Way(NamedTuple):
    """One way of running the model; ``memory`` is ``None`` for the dense one."""

    dtype: str
    memory: str | None


WAYS = {
    "packed bf16": Way("bfloat16", "packed"),
    "packed fp32": Way("float32", "packed"),
    "decoded fp32": Way("float32", "decoded"),
    "dense fp32": Way("float32", None),
    "dense bf16": Way("bfloat16", None),
}


def memory_bytes(kind: str) -> int:
    """Return an entry of this process' status.

    Args:
        kind: ``VmRSS`` (resident), ``RssAnon`` (of it, what is no page of a file, such as the code
            of torch's kernels), ``VmHWM`` (largest resident so far).
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{kind}:")))


def tensor_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of all tensors of a model, each storage once."""
    found = {}
    for module in model.modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, CompressedModule):
            held += [t for t in vars(module).values() if isinstance(t, torch.Tensor)]
        for tensor in held:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def model_of(way: Way, folder: str, base: str) -> PreTrainedModel:
    """Load the model of a way."""
    dtype = getattr(torch, way.dtype)
    if way.memory is None:
        return load_dense(base, dtype=dtype).model
    return load(folder, dtype=dtype, memory=way.memory)  # type: ignore[arg-type]


@torch.inference_mode()
def measure(name: str, folder: str, base: str, prompt: int, new: int) -> dict[str, Any]:
    """Load in this process, decode greedily after a prompt, and return bytes and tokens a second.

    The clock runs on single steps after the prompt; the median step counts.
    """
    quiet_libraries()
    native_sketch(Path(folder))  # what transformers imports for a model is not the model's
    _ = torch.randn(64, 64) @ torch.randn(64, 64)
    gc.collect()
    empty = {kind: memory_bytes(kind) for kind in ("VmRSS", "RssAnon")}
    begun = time.perf_counter()
    model = model_of(WAYS[name], folder, base)
    loaded = {kind: memory_bytes(kind) for kind in empty}
    seconds = time.perf_counter() - begun
    tokens = (torch.arange(prompt) * 7919 + 1)[None] % model.config.vocab_size
    begun = time.perf_counter()
    output = model(tokens, use_cache=True, logits_to_keep=1)
    first = time.perf_counter() - begun
    steps, work = [], []
    for _ in range(new):
        token = output.logits[:, -1:].argmax(dim=-1)
        begun, used = time.perf_counter(), time.process_time()
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        steps.append(time.perf_counter() - begun)
        work.append(time.process_time() - used)
    return {
        "load_s": round(seconds, 2),
        "prefill_s": round(first, 3),
        "decode_tokens_per_s": round(1 / statistics.median(steps), 2),
        "decode_tokens_per_cpu_s": round(1 / statistics.median(work), 2),
        "tensor_bytes": tensor_bytes(model),
        "rss_after_load_bytes": loaded["VmRSS"] - empty["VmRSS"],
        "anonymous_after_load_bytes": loaded["RssAnon"] - empty["RssAnon"],
        "rss_after_generate_bytes": memory_bytes("VmRSS") - empty["VmRSS"],
        "anonymous_after_generate_bytes": memory_bytes("RssAnon") - empty["RssAnon"],
        "peak_rss_bytes": memory_bytes("VmHWM") - empty["VmRSS"],
    }


def main() -> None:
    """Measure the ways in turns and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a native folder")
    parser.add_argument("--base", default="smollm2-135m", help="the dense model it came from")
    parser.add_argument("--prompt", type=int, default=64, help="tokens before the clock starts")
    parser.add_argument("--new", type=int, default=32, help="tokens that are timed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--llama", type=Path, help="a GGUF of the same model, see q4_0.py")
    parser.add_argument("--node", type=Path, help="where node-llama-cpp is installed")
    parser.add_argument("--one", choices=WAYS, help="measure one way in this process, as JSON")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.folder, asked.base, asked.prompt, asked.new)))
        return
    commands = {name: [sys.executable, *sys.argv, "--one", name] for name in WAYS}
    if asked.llama is not None:
        sizes = (asked.prompt, asked.new, torch.get_num_threads())
        path = asked.llama.resolve()
        commands["llama.cpp"] = ["node", str(SCRIPT), str(path), *map(str, sizes)]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for turn in range(asked.turns):
        for name, command in commands.items():
            folder = asked.node if name == "llama.cpp" else None
            text = subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=folder
            ).stdout
            rows[name].append(json.loads(text.splitlines()[-1]))
            print(f"turn {turn + 1}, {name}: {text.splitlines()[-1]}", file=sys.stderr, flush=True)
            write(asked, rows)


def _median(values: list[Any]) -> Any:
    """Return the median of numbers, or what is the same in all turns."""
    return values[0] if isinstance(values[0], str) else statistics.median(values)


def write(asked: argparse.Namespace, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write the medians of what has been measured so far."""
    result = {
        "settings": {"prompt": asked.prompt, "new": asked.new},
        "file_bytes": (Path(asked.folder) / WEIGHTS_FILE).stat().st_size,
        "llama_file_bytes": asked.llama and asked.llama.stat().st_size,
        "ways": {
            name: {"turns": len(found)}
            | {key: _median([row[key] for row in found]) for key in found[0]}
            for name, found in rows.items()
            if found
        },
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
