"""Run the authors' own code of each method on one small layer and keep what it gives.

``python official.py CHECKOUTS FOLDER [METHOD …]``: ``CHECKOUTS`` holds a clone of every repository
of ``SOURCES`` under its name, at its commit; ``FOLDER`` gets ``site.safetensors``, the layer, and
a file of tensors a method, which the tests beside it compare with. Needs torch, transformers,
scikit-learn and safetensors. Nothing of the repositories is kept but these numbers.

Their code is changed from outside alone: tensors stay on the processor, packages that their core
does not need are left empty, and a calibration set is the layer's input. ``CHANGES`` says what
else.
"""

import argparse
import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from official_layer import INPUTS, OUTPUTS, Site, Tensors, importable, pruned
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import OPTConfig
from transformers.models.opt.modeling_opt import OPTDecoderLayer

SOURCES = {
    "gptq": ("IST-DASLab/gptq", "2d65066eeb06a5c9ff5184d8cebdf33662c67faf"),
    "quip": ("Cornell-RelaxML/QuIP", "ac92cfc7a22f6100009e2caf53bb72257d3f3184"),
    "awq": ("mit-han-lab/llm-awq", "d6e797a42b9ef7778de8ee2352116e0f48a78d61"),
    "owq": ("xvyaward/owq", "03cfc9941cfbe951ca7dbc614c66bc625fbb9857"),
    "spqr": ("Vahe1994/SpQR", "543d10e56f921e5eeb10d5f0aaaccd30b6662d0e"),
    "squeezellm": ("SqueezeAILab/SqueezeLLM", "a5fd71f353bf569feb7b55737c1c1493e78e8f31"),
    "lutgemm": ("naver-aics/lut-gemm", "647d49fcf0b054b6dafee04b5ce1c8c2adb047e5"),
    "gptaq": (
        "Intelligent-Computing-Lab-Yale/GPTAQ",
        "883afc64f40ac061a59ef8cbe5bd794c01377e37",
    ),
    "sparsegpt": ("IST-DASLab/sparsegpt", "147d2159dc4f3e9f73e47b32c04d7b3708f44436"),
    "wanda": ("locuslab/wanda", "8e8fc87b4a2f9955baa7e76e64d5fce7fa8724a6"),
    "dsnot": ("zyxxmu/DSnoT", "4c029dfa66cae3dba7f4a77c78a524e272fc638c"),
    "owl": ("luuyin/OWL", "dddb7a4bffe27c73e4c8cf692b3a5e36401532c8"),
    "asvd": ("hahnyuan/ASVD4LLM", "863042743edb4c0dcc512a45534dea07df16b140"),
    "laser": ("pratyushasharma/laser", "d391375b0e49f9ed0133bed38f36570c2d1d2043"),
    "lplr": ("pilancilab/matrix-compressor", "2d53a4faad42e0f58af2bae4625d01db1b054d3b"),
}
CHANGES = {
    "asvd": "'exact_*' with the exact SVD in place of torch.svd_lowrank",
    "laser": "'exact_*' with the exact SVD in place of torch.svd_lowrank",
    "squeezellm": "np.cast, which numpy has no more",
    "sparsegpt": "asked for one weight fewer, since it drops one more than it is asked for",
    "quip": "what rounds is called with no rotation, and with the rotation that is kept here",
}


def gptq(site: Site) -> Tensors:
    """Static groups in act-order; groups of the permuted input; symmetric rows clipped by MSE."""
    engine, quant = importlib.import_module("gptq"), importlib.import_module("quant")
    found: Tensors = {}
    for name, sym, how in (
        ("static", False, {"groupsize": 16, "actorder": True, "static_groups": True}),
        ("permuted", False, {"groupsize": 16, "actorder": True}),
        ("clipped", True, {}),
    ):
        solver = site.fed(engine.GPTQ(linear := site.linear()), None)
        solver.quantizer = quant.Quantizer()
        solver.quantizer.configure(3, perchannel=True, sym=sym, mse=sym)
        solver.fasterquant(**how)
        found[name] = linear.weight.data
    found |= site.losses(found, "static", "permuted")
    return found | {"clipped_scale": solver.quantizer.scale}


def sparsegpt(site: Site) -> Tensors:
    """Half of the weights in one strip and in two, 2:4, and both pruned and rounded."""
    engine, quant = importlib.import_module("sparsegpt"), importlib.import_module("quant")
    half = (OUTPUTS * INPUTS // 2 - 1) / (OUTPUTS * INPUTS)
    found: Tensors = {}
    for name, asked in (
        ("half", {"sparsity": half}),
        ("strips", {"sparsity": half, "blocksize": INPUTS // 2}),
        ("pattern", {"sparsity": 0, "prunen": 2, "prunem": 4}),
        ("rounded", {"sparsity": half}),
    ):
        solver = site.fed(engine.SparseGPT(linear := site.linear()), None)
        if name == "rounded":
            solver.quantizer = quant.Quantizer()
            solver.quantizer.configure(4, perchannel=True, sym=False)
        solver.fasterprune(**asked)
        found[name] = linear.weight.data
    return found


def wanda(site: Site) -> Tensors:
    """Masks of 50 % a row and of 2:4."""
    prune = importlib.import_module("lib.prune").prune_wanda
    found = {
        "half": pruned(site, prune, [site.weight], sparsity_ratio=0.5),
        "pattern": pruned(site, prune, [site.weight], sparsity_ratio=0.5, pattern=(2, 4)),
    }
    return {name: model.weights()[0] != 0 for name, model in found.items()}


def dsnot(site: Site) -> Tensors:
    """Masks of Wanda's 50 % and 2:4 after swaps: by default, without a threshold, and the first.

    Ten cycles: in rows this short their code runs past the end of its lists in fifty.
    ``stop_*`` ends a row at a change of sign, as theirs does in patterns alone by default.
    """
    prune = importlib.import_module("lib.prune").prune_DSnoT
    usual = {
        "initial_method": "wanda",
        "max_cycle_time": 10,
        "update_threshold": 0.1,
        "pow_of_var_regrowing": 1,
        "skip_layer": "mlp",
        "skip_sub_layer": "no_skip",
        "without_same_sign": True,
        "without_DSnoT": False,
        "get_time_overhead": False,
        "sparsity_ratio": 0.5,
    }
    found: Tensors = {}
    for name, asked in (
        ("usual", {}),
        ("stop", {"update_threshold": 0.0, "without_same_sign": False}),
        ("first", {"update_threshold": 0.0, "max_cycle_time": 1}),
    ):
        for kind, pattern in (("half", (0, 0)), ("pattern", (2, 4))):
            model = pruned(site, prune, [site.weight], pattern=pattern, **{**usual, **asked})
            found[f"{name}_{kind}"] = model.weights()[0] != 0
    return found | site.losses(found, "usual_half", "usual_pattern", "stop_half", "stop_pattern")


def owl(site: Site) -> Tensors:
    """Masks of four blocks, the weight rolled against the input, λ 0.08, M 5, 50 % and 70 %."""
    prune = importlib.import_module("lib.prune_all").prune_wanda_outlier
    weights = [site.weight.roll(7 * index, 1) for index in range(4)]
    return {
        f"s{percent}": torch.stack(
            pruned(
                site, prune, weights, sparsity_ratio=percent / 100, Hyper_m=5, Lamda=0.08
            ).weights()
        )
        != 0
        for percent in (50, 70)
    }


def gptaq(site: Site) -> Tensors:
    """Two streams, the compressed one rounded to quarters; groups of 16 in act-order."""
    engine = importlib.import_module("gptaq_utils")
    solver = engine.GPTAQ(linear := site.linear())
    other = (4 * site.inputs).round() / 4
    solver.fp_inp.append(site.inputs.T)
    solver.add_batch(other, None)
    solver.quantizer = importlib.import_module("quant_utils").WeightQuantizer()
    solver.quantizer.configure(3, perchannel=True, sym=False)
    solver.fasterquant(groupsize=16, actorder=True, static_groups=True)
    lost = (other @ linear.weight.T - site.inputs @ site.weight.T).square().sum(1).mean()
    return {"static": linear.weight.data, "static_loss": lost}


def quip(site: Site) -> Tensors:
    """LDLQ in act-order without and with two greedy passes, and all of the method at 2 bits."""
    engine, quant = importlib.import_module("bal"), importlib.import_module("quant")
    found: Tensors = {}
    for name, passes, whole in (("ldlq", 0, False), ("greedy", 2, False), ("whole", 0, True)):
        torch.manual_seed(0)
        np.random.seed(0)  # theirs draws from the one and the other
        solver = site.fed(engine.Balance(linear := site.linear()), None)
        solver.post_batch()
        solver.configure("ldlqRG", 2, passes, unbiased=False)
        solver.quantizer = quant.Quantizer()
        solver.quantizer.configure(2, perchannel=True, sym=False, qfn="b")
        solver.preproc(True, 0.01, preproc_rescale=whole, preproc_proj=whole, preproc_proj_extra=1)
        if whole:
            found |= {"left": solver.projU, "right": solver.projV, "scale": solver.scaleWH}
        with patch.object(torch.Tensor, "half", lambda tensor: tensor):
            solver.quantizer.ready = lambda: True
            solver.fasterquant()
        found[name] = linear.weight.data
    return found | site.losses(found, "ldlq", "greedy", "whole")


def awq(site: Site) -> Tensors:
    """The scale of the input and the largest weight of each group of 16 after clipping."""
    config = {"zero_point": True, "q_group_size": 16}
    block = OPTDecoderLayer(OPTConfig(hidden_size=OUTPUTS, ffn_dim=INPUTS, num_attention_heads=4))
    block.fc2 = site.linear()
    others = dict.fromkeys(
        ("self_attn.q_proj", "self_attn.out_proj", "fc1"), torch.ones(1, 1, OUTPUTS)
    )
    scale = importlib.import_module("awq.quantize.auto_scale").auto_scale_block(
        block, {}, 3, config, {**others, "fc2": site.inputs}
    )
    clip = importlib.import_module("awq.quantize.auto_clip").auto_clip_layer(
        site.weight.repeat(4, 1), site.inputs, 3, config, n_sample_token=len(site.inputs)
    )
    return {"scale": scale[-1][2], "clip": clip[: len(site.weight), :, 0]}


def owq(site: Site) -> Tensors:
    """Three bits and four columns, the others left to right and by what they lose."""
    engine, quant = importlib.import_module("owq.recon"), importlib.import_module("owq.quant")
    nearest = quant.Quantizer(3, perchannel=True)
    nearest.find_params(site.weight, weight=True)
    lost = (site.weight - nearest.quantize(site.weight)).square().sum(0)
    found: Tensors = {}
    for name, act_order in (("natural", False), ("act_order", True)):
        solver = site.fed(engine.GPTQ_OWQ(linear := site.linear(), 4), None)
        solver.quantizer = quant.Quantizer(3, perchannel=True)
        found["columns"] = solver.hessian_sorting(actorder=act_order, frob_norm=lost)
        solver.fasterquant(actorder=act_order)
        found[name] = linear.weight.data
        found["grid_scale"], found["grid_zero"] = solver.quantizer.scale, solver.quantizer.zero
    return found | site.losses(found, "natural", "act_order")


def spqr(site: Site) -> Tensors:
    """Codes, scales, zeros and outliers at thresholds of ∞ and 0.2, left to right."""
    engine, quant = importlib.import_module("spqr_engine"), importlib.import_module("quant_groups")
    fit, found = quant.Quantizer.find_params, {}
    for name, threshold in (("plain", float("inf")), ("outliers", 0.2)):
        grids: list[tuple[Tensor, Tensor]] = []

        def fitted(quantizer: nn.Module, values: Tensor, weight: bool = False) -> None:
            fit(quantizer, values, weight=weight)
            if weight and values.shape == (OUTPUTS, 16) and quantizer.qq_scale_bits:
                grids.append((quantizer.scale, quantizer.zero))  # noqa: B023

        with patch.object(quant.Quantizer, "find_params", fitted):
            made = site.fed(engine.SPQRUtil(site.linear())).quantize(
                bits=3,
                groupsize=16,
                outlier_relative_threshold=threshold,
                qq_scale_bits=3,
                qq_zero_bits=3,
                save_quantization=True,
                verbose=False,
            )
        found |= {
            f"{name}_weight": made.weight,
            f"{name}_mask": made.unstructured_outlier_mask,
            f"{name}_scale": torch.cat([scale for scale, _ in grids], dim=1),
            f"{name}_zero": torch.cat([zero for _, zero in grids], dim=1),
        }
    return found | site.losses(found, "plain_weight", "outliers_weight")


def squeezellm(site: Site) -> Tensors:
    """Centroids of each row at 3 bits, and which weights the two thresholds leave out."""
    engine = importlib.import_module("quantization.nuq")
    rows = zip(site.weight, site.sensitivity, strict=True)
    made = [engine.kmeans_fit((row[:, None].numpy(), near.numpy(), 8)) for row, near in rows]
    count, sensitive = 90, 10
    model, fisher = {"w": site.weight.clone()}, {"w": site.sensitivity}
    share = 100 * (sensitive + 1.5) / site.weight.numel()
    exact = engine.remove_outliers(model, share, None, fisher)
    threshold = model["w"].abs().flatten().topk(count - sensitive).values[-1].item()
    exact = engine.remove_outliers(model, 0, {"w": threshold})
    return {
        "centroids": torch.stack([torch.from_numpy(centres) for centres, _ in made]),
        "labels": torch.stack([torch.from_numpy(labels) for _, labels in made]),
        "large": exact[0][0] != 0,
        "exact": model["w"] != site.weight,
    }


def lutgemm(site: Site) -> Tensors:
    """Three planes of signs and their scales, a group of 16."""
    made, _, scale, _ = importlib.import_module("bcq").quantize(site.weight, 3, group_size=16)
    return {"weight": made, "scale": scale, "loss": (made - site.weight).square().sum()}


def exact_svd(matrix: Tensor, q: int, niter: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return the q largest singular values and their vectors, as svd_lowrank does."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :q], values[:q], right[:q].T


def asvd(site: Site) -> Tensors:
    """The product of the factors at half of the parameters, α = 0.5."""
    engine = importlib.import_module("modules.svd_linear").SVDLinear
    found = {}
    for name, decompose in (("usual", torch.svd_lowrank), ("exact", exact_svd)):
        torch.manual_seed(0)
        linear = site.linear()
        linear.scaling_diag_matrix = site.inputs.abs().mean(0)
        with patch("torch.svd_lowrank", decompose):
            made = engine.from_linear(linear, param_ratio=0.5, act_aware=True, alpha=0.5)
        found[name] = (made.ALinear.weight @ made.BLinear.weight).data
    return found | site.losses(found, "usual", "exact")


def laser(site: Site) -> Tensors:
    """A quarter of the rank."""
    engine = importlib.import_module("laser.matrix_utils")
    found = {}
    for name, decompose in (("usual", torch.svd_lowrank), ("exact", exact_svd)):
        torch.manual_seed(0)
        with patch("torch.svd_lowrank", decompose):
            found[name] = engine.do_low_rank(site.weight, 0.25).data
        found[f"{name}_loss"] = (found[name] - site.weight).square().sum()
    return found


def lplr(site: Site) -> Tensors:
    """Rank 12, 8 bits: the rounded sketch and the rounded second factor."""
    engine = importlib.import_module("lplr.compressors")
    rounded, rounds = [], engine.quantize

    def kept(*values: Tensor, **asked: object) -> Tensor:
        rounded.append(rounds(*values, **asked))
        return rounded[-1]

    with patch.object(engine, "quantize", kept):
        made = engine.lplr(site.weight, r=12, B1=8, B2=8, seed=site.number)
    return {"left": rounded[0], "right": rounded[1], "loss": (made - site.weight).square().sum()}


METHODS: dict[str, tuple[Callable[[Site], Tensors], str]] = {
    "gptq": (gptq, ""),
    "gptaq": (gptaq, "fake_quant"),
    "quip": (quip, ""),
    "awq": (awq, ""),
    "owq": (owq, ""),
    "spqr": (spqr, ""),
    "squeezellm": (squeezellm, ""),
    "lutgemm": (lutgemm, "examples"),
    "sparsegpt": (sparsegpt, ""),
    "wanda": (wanda, ""),
    "dsnot": (dsnot, ""),
    "owl": (owl, ""),
    "asvd": (asvd, ""),
    "laser": (laser, "src"),
    "lplr": (lplr, "src"),
}
"""What runs a method, and where in the repository its code is."""
LAYERS = 8
"""Of which losses are kept; tensors are of the first."""
PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*", help=", ".join(METHODS))
    asked = parser.parse_args()
    torch.set_grad_enabled(False)
    sites = [Site(number) for number in range(LAYERS)]
    save_file(sites[0].tensors(), asked.folder / "site.safetensors")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    for name in asked.methods or METHODS:
        run, below = METHODS[name]
        repository, commit = SOURCES[name]
        with importable(asked.checkouts.resolve() / repository.partition("/")[2] / below):
            first, *others = (run(site) for site in sites)
        found = {
            key: tensor.contiguous()
            if tensor.dim()
            else torch.stack([tensor, *(other[key] for other in others)])
            for key, tensor in first.items()
        }
        origin = {"repository": repository, "commit": commit, "with": versions}
        if name in CHANGES:
            origin["changed"] = CHANGES[name]
        save_file(found, asked.folder / f"{name}.safetensors", metadata=origin)
        print(name, {key: tuple(tensor.shape) for key, tensor in found.items()})


if __name__ == "__main__":
    main()
