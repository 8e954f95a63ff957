"""Whether reducing the rank of a few late matrices improves a model, as LASER finds on tasks.

``python studies/laser/measure.py CORPUS`` selects reductions of the last blocks' MLP matrices
greedily by the next-token loss on one part of ``CORPUS``, and measures what is kept, if anything
is, on another.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autocomp.cli.libraries import quiet_libraries
from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.data import load_corpus, windows
from autocomp.evaluate.record import versions
from autocomp.models import load

MODEL = "smollm2-135m"
WINDOW = 512
SELECT_TOKENS, REPORT_TOKENS = 1024, 4096
ROLES = ("gate_proj", "up_proj", "down_proj")
PERCENTS = (10.0, 75.0)


class Tail:
    """The last blocks of a model on fixed text: what comes before them is computed once.

    Args:
        model: A causal LM with ``model.layers``, ``model.norm`` and ``lm_head``.
        tokens: (windows, length) token ids.
        blocks: How many blocks may change.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, blocks: int) -> None:
        self.model, self.tokens = model, tokens
        self.first = len(model.model.layers) - blocks
        self.inputs: list[dict[int, tuple[Tensor, dict[str, Any]]]] = []
        for window in tokens:
            found: dict[int, tuple[Tensor, dict[str, Any]]] = {}

            def keep(layer: nn.Module, inputs: tuple, kwargs: dict, found: dict = found) -> None:
                found[len(found) + self.first] = inputs[0], kwargs

            hooks = [
                layer.register_forward_pre_hook(keep, with_kwargs=True)
                for layer in model.model.layers[self.first :]
            ]
            model.model(window[None], use_cache=False)
            for hook in hooks:
                hook.remove()
            self.inputs.append(found)

    def measure(self, weights: Mapping[str, Tensor]) -> list[tuple[float, float]]:
        """Return loss in nats a token and top-1 accuracy of every window, with other weights.

        Args:
            weights: (out, in) by ``<block>.<role>``; the rest is the model's.
        """
        layers = self.model.model.layers
        held = {name: self._linear(name).weight.data for name in weights}
        for name, weight in weights.items():
            self._linear(name).weight.data = weight
        start = min([int(name.partition(".")[0]) for name in weights], default=len(layers) - 1)
        found = []
        for window, inputs in zip(self.tokens, self.inputs, strict=True):
            hidden, kwargs = inputs[start]
            for layer in layers[start:]:
                output = layer(hidden, **kwargs)
                hidden = output if isinstance(output, Tensor) else output[0]
            logits = self.model.lm_head(self.model.model.norm(hidden))[0, :-1]
            right = (logits.argmax(dim=1) == window[1:]).float().mean()
            found.append((float(cross_entropy(logits, window[1:])), float(right)))
        for name, weight in held.items():
            self._linear(name).weight.data = weight
        return found

    def _linear(self, name: str) -> nn.Linear:
        block, _, role = name.partition(".")
        return getattr(self.model.model.layers[int(block)].mlp, role)


def summary(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return means over windows."""
    losses, accuracies = zip(*scores, strict=True)
    return {
        "loss_nats": statistics.fmean(losses),
        "top1_accuracy": statistics.fmean(accuracies),
    }


def paired(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """Return the mean difference over windows and its standard error."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    return {
        "mean": statistics.fmean(changes),
        "standard_error": statistics.stdev(changes) / len(changes) ** 0.5,
    }


def main() -> None:
    """Select, report, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="a text of at least 30,000 tokens")
    parser.add_argument("--blocks", type=int, default=4, help="how many of the last blocks")
    parser.add_argument("--tokens", type=int, default=SELECT_TOKENS, help="to select by")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "measured.json"
    )
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_grad_enabled(False)
    compress = load_object("autocomp.methods.compose:compress")
    select = load_object("autocomp.methods.low_rank.laser:select")
    loaded, corpus = load(MODEL, dtype=torch.float32), load_corpus(arguments.corpus)

    def text(split: str, tokens: int) -> Tensor:
        return windows(corpus, split, loaded.tokenizer, tokens=tokens, length=WINDOW).input_ids

    search = Tail(loaded.model, text("search", arguments.tokens), arguments.blocks)
    reduced: dict[tuple[str, float], Tensor] = {}
    rows: list[dict[str, Any]] = []

    def weights(kept: Mapping[str, float]) -> dict[str, Tensor]:
        for name, percent in kept.items():
            if (name, percent) not in reduced:
                spec = LayerSpec.parse(f"laser-k{percent:g}")
                made = compress(search._linear(name).weight, spec, None, "float32")
                reduced[name, percent] = made.to_dense()
        return {name: reduced[name, percent] for name, percent in kept.items()}

    def score(kept: Mapping[str, float]) -> float:
        found = summary(search.measure(weights(kept)))
        rows.append({"kept": dict(kept), **found})
        print(json.dumps(rows[-1]), flush=True)
        return -found["loss_nats"]

    def candidates() -> Iterator[tuple[str, tuple[float, ...]]]:
        for block in range(search.first, len(loaded.model.model.layers)):
            yield from ((f"{block}.{role}", PERCENTS) for role in ROLES)

    kept = select(dict(candidates()), score)
    result = {
        "model": MODEL,
        "corpus": Path(arguments.corpus).name,
        "blocks": arguments.blocks,
        "window": WINDOW,
        "select_tokens": arguments.tokens,
        "versions": versions(),
        "selected": kept,
        "tried": rows,
    }
    if kept:
        report = Tail(loaded.model, text("heldout", REPORT_TOKENS), arguments.blocks)
        before, after = report.measure({}), report.measure(weights(kept))
        result["report_tokens"] = REPORT_TOKENS
        result["heldout"] = {"before": summary(before), "after": summary(after)}
        result["change"] = {
            name: paired([row[place] for row in before], [row[place] for row in after])
            for place, name in enumerate(("loss_nats", "top1_accuracy"))
        }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result.get(key) for key in ("selected", "heldout", "change")}))


if __name__ == "__main__":
    main()
