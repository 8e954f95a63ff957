"""What the contract of methods tries each method with."""

from autocomp.core.spec import FactorSpec, MaskSpec, UniformSpec

SHAPE = (24, 32)

# Options by method or by spec class: valid on SHAPE; valid on one column; equal to the dense
# weight; from most to least compressed; refused on SHAPE. The bare name where there is no entry.
OPTIONS: dict[type | str, dict[str, tuple[str, ...]]] = {
    UniformSpec: {
        "valid": (
            "-w4",
            "-w3g8",
            "-w8g16-sym",
            "-w2g32-mse",
            "-w5-sym-mse",
            "-w6g4",
            "-w3g8-clip",
            "-w4-sym-clip",
        ),
        "column": ("-w4", "-w3-sym"),
        "ladder": ("-w2g8", "-w3g8", "-w4g8", "-w8g8"),
        "refused": ("-w4g5", "-w4g64"),
    },
    MaskSpec: {
        "valid": ("-s50", "-s33.3", "-2:4", "-1:8"),
        "column": ("-s50",),
        "identity": ("-4:4",),
        "ladder": ("-s75", "-s50", "-s25"),
        "refused": ("-2:5",),
    },
    "wanda": {
        "valid": ("-s50", "-s33.3-variant", "-2:4", "-1:8"),
        "column": ("-s50", "-s50-variant"),
        "identity": ("-4:4",),
        "ladder": ("-s75", "-s50", "-s25"),
        "refused": ("-2:5",),
    },
    "esparse": {
        "valid": ("-s50", "-2:4", "-1:8-a0.5", "-s33.3-a0"),
        "column": ("-s50",),
        "identity": ("-4:4",),
        "ladder": ("-s75", "-s50", "-s25"),
        "refused": ("-2:5",),
    },
    "shuffle": {"valid": ("", "-global", "-b16")},
    "dsnot": {"valid": ("", "-c3", "-c8-t5"), "column": ("",)},
    FactorSpec: {
        "valid": ("-r8", "-r5", "-p50"),
        "column": ("-r1",),
        "identity": ("-r24",),
        "ladder": ("-r2", "-r8", "-r16"),
    },
    "asvd": {
        "valid": ("-r8", "-p50-a100", "-r5-a0"),
        "column": ("-r1",),
        "identity": ("-r24", "-r24-a100"),
        "ladder": ("-r2", "-r8", "-r16"),
    },
    "laser": {
        "valid": ("-k20", "-k75", "-k2.5"),
        "column": ("-k100", "-k10"),
        "identity": ("-k100",),
        "ladder": ("-k10", "-k50", "-k75"),
    },
    "lplr": {
        "valid": ("-r8-w8", "-p50-w4w8g8", "-r5-w6t-q1", "-r16-w3-q2-s7"),
        "column": ("-r1-w8", "-r1-w4t"),
        "ladder": ("-r2-w4", "-r8-w4", "-r8-w8", "-r16-w8", "-r16-w8-q2"),
    },
    "lorc": {
        "valid": ("-r8", "-p20", "-r8-w8", "-p20-w4"),
        "column": ("-r1", "-r1-w8"),
        "identity": ("-r24",),
        "ladder": ("-r2-w8", "-r2", "-r8-w8", "-r16"),
    },
    "lqer": {
        "valid": ("-r8", "-p20-a50", "-r8-w8", "-p20-a0-w4"),
        "column": ("-r1", "-r1-w8"),
        "identity": ("-r24",),
        "ladder": ("-r2-w8", "-r2", "-r8-w8", "-r16"),
    },
    "owq": {
        "valid": ("-w3-t4", "-w2g8-sym-t2", "-w4g8-mse-t5.5", "-w3g8-clip-t3.5"),
        "column": ("-w4-t4", "-w4-t16"),
        "identity": ("-w4-t16",),
        "ladder": ("-w2-t2", "-w2-t4", "-w3-t6", "-w4-t8"),
        "refused": ("-w3g5-t3", "-w4g64-t5"),
    },
    "quip": {
        "valid": ("-w2", "-w3-p1", "-w4-p2", "-w3-hadamard", "-w2-p1-orthogonal"),
        "mixing rows": ("-w3-hadamard", "-w2-p1-orthogonal"),
        "column": ("-w4", "-w4-orthogonal"),
        "ladder": ("-w2", "-w3", "-w4"),
    },
    "spqr": {
        "valid": ("-w3-o5", "-w4g8", "-w2-o0.5"),
        "column": ("-w4g1",),
        "ladder": ("-w2", "-w3", "-w4", "-w4-o5", "-w8-o5"),
        "refused": ("-w3g5", "-w3g64-o1"),
    },
    "lutgemm": {
        "valid": ("-w3", "-w2g8-offset", "-w1g16-weighted"),
        "column": ("-w2", "-w1-offset"),
        "ladder": ("-w1g8", "-w2g8", "-w3g8", "-w5g8"),
        "refused": ("-w3g5",),
    },
    "squeezellm": {
        "valid": ("-w3", "-w2-o10"),
        "column": ("-w2", "-w2-o20"),
        "ladder": ("-w2", "-w2-o10", "-w3"),
    },
    "hqq": {
        "valid": ("-w2g8", "-w3g16", "-w4", "-w8g4"),
        "column": ("-w3", "-w4"),
        "ladder": ("-w2g8", "-w3g8", "-w4g8", "-w8g8"),
        "refused": ("-w4g5",),
    },
    "nf": {
        "valid": ("-w4", "-w3", "-w2b16", "-w4b7-single"),
        "column": ("-w4", "-w2-single"),
        "ladder": ("-w2", "-w3", "-w4"),
    },
    "fp": {
        "valid": ("-w4g8", "-w8", "-w4g16-m1", "-w8g8-m2", "-w8-e5m2"),
        "column": ("-w4", "-w8-m2"),
        "ladder": ("-w4", "-w4g8", "-w8g8"),
        "refused": ("-w4g5", "-w8g64-m1"),
    },
    "zqfp": {
        "valid": ("-w4g8", "-w8", "-w4g16-m1", "-w4g8-m2"),
        "column": ("-w4", "-w8-m2"),
        "ladder": ("-w4", "-w4g8", "-w8g8"),
        "refused": ("-w4g5", "-w8g64-m1"),
    },
    "smoothquant": {"valid": ("", "-a85", "-a0"), "column": ("",)},
    "rotation": {
        "valid": ("-hadamard", "-orthogonal", "-full-rescaled", "-hadamard-s7"),
        "column": ("-hadamard", "-orthogonal"),
    },
    "fpabsmax": {
        "valid": ("-a8", "-a4"),
        "column": ("-a8", "-a4"),
        "ladder": ("-a4", "-a8"),
    },
    "absmax": {
        "valid": ("-a8", "-a6", "-a4-tensor"),
        "column": ("-a8", "-a8-tensor"),
        "ladder": ("-a4", "-a6", "-a8"),
    },
    "llmint8": {"valid": ("", "-t2"), "column": ("",)},
}

# What makes an option of a slot a whole layer spec, and what else it, or a method that has other
# partners than its slot, is tried with.
BASES = {
    "shuffle": "{}+wanda-2:4",
    "input": "{}+rtn-w4",
    "refinement": "wanda-s50+{}",
    "residual": "rtn-w3+{}",
    "activation": "rtn-w8-sym+{}",
}
PARTNERS = {
    "shuffle": ("{}+sparsegpt-1:4+gptq-w4g8", "{}+esparse-4:8+dsnot+rtn-w4g8"),
    "refinement": ("sparsegpt-2:4+{}", "sparsegpt-s50+{}+gptq-w4g8", "magnitude-2:4+{}+rtn-w4"),
    "lplr": ("smoothquant+{}",),
    "mask": ("{}+rtn-w4g8", "{}+gptq-w4g8"),
    "factor": ("{}+rtn-w4g8", "{}+gptq-w3"),
    "input": ("{}+gptq-w3g8", "{}+wanda-s50", "{}+svd-r8", "{}+rtn-w8-sym+absmax-a4-tensor"),
    "residual": ("gptq-w3g8+{}", "wanda-s50+{}", "wanda-2:4+rtn-w4+{}"),
    "activation": ("svd-r8+rtn-w8+{}", "wanda-s50+gptq-w4+{}", "zqfp-w4g8-m2+lorc-r4+{}"),
}
