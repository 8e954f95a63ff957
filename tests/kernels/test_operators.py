"""Operations under ``torch.compile``: one node each, the same result."""

import pytest
import torch

from autocomp.core.registry import KERNELS
from autocomp.testing.kernels import cases

OPERATORS = [name for name, found in KERNELS.items() if found._operator is not None]


def test_the_products_of_a_packed_model_are_operators():
    assert {"weight_only_matmul", "int8_matmul", "quantize_activations", "hadamard"} <= set(
        OPERATORS
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_one_node_of_a_graph(name):
    nodes = []

    def backend(graph, inputs):
        nodes.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    found = KERNELS[name]
    arguments = cases(name, torch.float32)[-1].arguments
    compiled = torch.compile(lambda *a: found(*a), backend=backend, fullgraph=True)
    result, expected = compiled(*arguments), found(*arguments)
    if not isinstance(expected, tuple):
        result, expected = (result,), (expected,)
    assert all(map(torch.equal, result, expected))
    assert sum(f"autocomp.{name}" in node for node in nodes) == 1
    torch.library.opcheck(getattr(torch.ops.autocomp, name).default, arguments)
