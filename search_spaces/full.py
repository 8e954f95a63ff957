"""Every kind of site method on one list: for studies of which of them a front takes."""

from autocomp.search_spaces._space import EMBEDDING, Space

FULL = Space(
    name="full",
    summary="the joint space with input steps, residual ranks and rounded inputs",
    linear=(
        "gptq-w2g64",
        "gptq-w3g64",
        "gptq-w3g32",
        "gptq-w4g64",
        "gptq-w4g32",
        "gptq-w5g64",
        "gptq-w6g64",
        "gptq-w8g64",
        "awq+gptq-w3g64",
        "awq+gptq-w4g64",
        "rotation-hadamard+gptq-w2g64",
        "rotation-hadamard+gptq-w3g64",
        "gptq-w2g64+lorc-r16-w8",
        "gptq-w2g64+lorc-r32-w8",
        "gptq-w3g64+lorc-r8-w8",
        "gptq-w3g64+lorc-r16-w8",
        "gptq-w3g64+lorc-r32-w8",
        "gptq-w4g64+lorc-r16-w8",
        "sparsegpt-2:4+gptq-w4g64",
        "sparsegpt-s50+gptq-w4g64",
        "sparsegpt-2:4+dsnot+gptq-w4g64",
        "shuffle+esparse-2:4+gptq-w4g64",
        "wsvd-p40+rtn-w8g64",
        "smoothquant+rtn-w8-sym+absmax-a8",
        "rtn-w8-sym",
        "dense",
    ),
    embedding=EMBEDDING,
    bypass=True,
    cache=("kivi-k2v2", "kivi-k4v4", "kivi-k8v8", "dense"),
)
