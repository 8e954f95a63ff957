"""Packed weight formats: one a file, each knowing its tensors, its bytes and how to decode."""

FORMATS = {
    "dense": "autocomp.formats.dense:Dense",
    "uniform": "autocomp.formats.uniform:Uniform",
    "uniform_tensor": "autocomp.formats.uniform_tensor:UniformTensor",
    "codebook": "autocomp.formats.codebook:Codebook",
    "bcq": "autocomp.formats.bcq:Bcq",
    "normal_float": "autocomp.formats.normal_float:NormalFloat",
    "float": "autocomp.formats.float:Float",
    "affine": "autocomp.formats.affine:Affine",
    "midrise": "autocomp.formats.midrise:Midrise",
    "bilevel": "autocomp.formats.bilevel:Bilevel",
    "bitmask": "autocomp.formats.bitmask:Bitmask",
    "nm": "autocomp.formats.nm:NM",
    "factors": "autocomp.formats.factors:Factors",
    "turned": "autocomp.formats.turned:Turned",
    "prepared": "autocomp.formats.prepared:Prepared",
    "sum": "autocomp.formats.sum:Sum",
    "outliers": "autocomp.formats.outliers:Outliers",
    "columns": "autocomp.formats.columns:Columns",
    "bypass": "autocomp.formats.bypass:Bypass",
}

STEPS = {
    "scale": "autocomp.formats.steps:Scale",
    "permutation": "autocomp.formats.steps:Permutation",
    "rotation": "autocomp.formats.steps:Rotation",
    "scaled-rotation": "autocomp.formats.steps:ScaledRotation",
    "round-input": "autocomp.formats.steps:RoundInput",
    "round-float-input": "autocomp.formats.float_input:RoundFloatInput",
    "round-regular": "autocomp.formats.round_regular:RoundRegular",
}
