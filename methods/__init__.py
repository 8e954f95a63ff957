"""Compression methods: one file a method, named in one table; shared maths in ``_*.py``."""

if __name__ != "autocomp.methods":
    raise ImportError("this folder is the package autocomp.methods; import it by that name")

METHODS = {
    "rtn": "autocomp.methods.quantization.rtn:Rtn",
    "gptq": "autocomp.methods.quantization.gptq:Gptq",
    "owq": "autocomp.methods.quantization.owq:Owq",
    "quip": "autocomp.methods.quantization.quip:Quip",
    "spqr": "autocomp.methods.quantization.spqr:Spqr",
    "actorder": "autocomp.methods.quantization.act_order:ActOrder",
    "awq": "autocomp.methods.quantization.awq:Awq",
    "smoothquant": "autocomp.methods.quantization.smoothquant:SmoothQuant",
    "osplus": "autocomp.methods.quantization.osplus:OsPlus",
    "rotation": "autocomp.methods.quantization.rotation:Rotation",
    "signround": "autocomp.methods.quantization.signround:SignRound",
    "lutgemm": "autocomp.methods.quantization.lutgemm:LutGemm",
    "squeezellm": "autocomp.methods.quantization.squeezellm:SqueezeLlm",
    "hqq": "autocomp.methods.quantization.hqq:Hqq",
    "nf": "autocomp.methods.quantization.nf:Nf",
    "absmax": "autocomp.methods.quantization.absmax:Absmax",
    "magnitude": "autocomp.methods.pruning.magnitude:Magnitude",
    "wanda": "autocomp.methods.pruning.wanda:Wanda",
    "sparsegpt": "autocomp.methods.pruning.sparsegpt:SparseGpt",
    "svd": "autocomp.methods.low_rank.svd:Svd",
    "wsvd": "autocomp.methods.low_rank.whitened_svd:WhitenedSvd",
    "asvd": "autocomp.methods.low_rank.asvd:Asvd",
    "laser": "autocomp.methods.low_rank.laser:Laser",
    "lplr": "autocomp.methods.low_rank.lplr:Lplr",
    "lorc": "autocomp.methods.low_rank.lorc:Lorc",
    "lqer": "autocomp.methods.low_rank.lqer:Lqer",
    "bypass": "autocomp.methods.structure.bypass:BypassSubblock",
    "flap": "autocomp.methods.structure.flap:Flap",
    "wandawidth": "autocomp.methods.structure.wanda_width:WandaWidth",
    "lora": "autocomp.methods.distillation.lora:Lora",
    "selfgen": "autocomp.methods.distillation.self_generated:SelfGenerated",
    "kivi": "autocomp.methods.kv_cache.kivi:Kivi",
}
