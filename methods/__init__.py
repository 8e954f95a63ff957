"""Compression methods: one file a method, named in one table; shared maths in ``_*.py``."""

if __name__ != "autocomp.methods":
    raise ImportError("this folder is the package autocomp.methods; import it by that name")

METHODS = {
    "rtn": "autocomp.methods.quantization.rtn:Rtn",
    "gptq": "autocomp.methods.quantization.gptq:Gptq",
    "magnitude": "autocomp.methods.pruning.magnitude:Magnitude",
    "wanda": "autocomp.methods.pruning.wanda:Wanda",
    "sparsegpt": "autocomp.methods.pruning.sparsegpt:SparseGpt",
    "svd": "autocomp.methods.low_rank.svd:Svd",
    "wsvd": "autocomp.methods.low_rank.whitened_svd:WhitenedSvd",
    "bypass": "autocomp.methods.structure.bypass:BypassSubblock",
}
