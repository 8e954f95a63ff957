"""The model card of an export."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from autocomp import __version__
from autocomp.core.spec import DENSE
from autocomp.cost.bytes import is_bypassed
from autocomp.layers.native import native_sketch, read_extra, read_plan
from autocomp.models.reference import HUB_NAME, REFERENCE

USE = {
    "native": (
        "The weights are packed; `model.safetensors` is as large as the search said.",
        "import autocomp\n\nmodel = autocomp.load({folder!r})",
    ),
    "hf": (
        "The weights are decoded to dense tensors, so that plain transformers loads them. **This "
        "format saves no bytes**; export with `--format native` for the packed file.",
        "from transformers import AutoModelForCausalLM\n\n"
        "model = AutoModelForCausalLM.from_pretrained({folder!r})",
    ),
}


def write_card(
    folder: Path, artefact: Path, format: str, base_model: str | None, size: int
) -> None:
    """Write ``README.md``: what the model is, how to load it, what was measured, what was done.

    Args:
        folder: The exported folder.
        artefact: The native folder it comes from.
        format: ``native`` or ``hf``.
        base_model: Name or id of the dense model, if known.
        size: Bytes of the weight files.
    """
    extra = read_extra(artefact)
    base = base_model or extra.get("model")
    data = ModelCardData(
        base_model=_hub_id(base),
        base_model_relation="quantized",
        library_name="autocomp" if format == "native" else "transformers",
        pipeline_tag="text-generation",
        tags=["autocomp", "compressed"],
    )
    claim, code = USE[format]
    measured = "".join(f"| {name} | {value} |\n" for name, value in _scalars(extra))
    done = "".join(f"| `{token}` | {count} |\n" for token, count in _tokens(artefact))
    title = f"{Path(base).name if base else 'A causal LM'}, compressed by autocomp"
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{claim} Weights: {size} bytes "
        f"({size / 1e6:.1f} MB). Written by autocomp {__version__}.\n\n"
        f"```python\n{code.format(folder='PATH')}\n```\n\n"
        "## What was done\n\n`plan.json` holds the whole plan.\n\n"
        f"| method | sites |\n|---|---|\n{done}"
    )
    if measured:
        text += f"\n## What was measured\n\n| | |\n|---|---|\n{measured}"
    ModelCard(text).save(folder / "README.md")


def _hub_id(base: str | None) -> str | None:
    """Return the hub id of the base model, or ``None`` when it has none."""
    if base == REFERENCE:
        return HUB_NAME
    if base is None or base.count("/") != 1 or Path(base).exists():
        return None
    return base


def _tokens(artefact: Path) -> list[tuple[str, int]]:
    """Return how many sites each token was given, most first; members of a bypass do not count."""
    plan, sketch = read_plan(artefact), native_sketch(artefact)
    stored = [s.name for s in sketch.weights() if not is_bypassed(sketch, plan, s.name)]
    gone = [s.name for s in sketch.subblocks() if plan[s.name] != DENSE]
    return Counter(plan[name].token() for name in stored + gone).most_common()


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the scalar values of nested mappings with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | bool):
            yield f"{prefix}{name}", value
