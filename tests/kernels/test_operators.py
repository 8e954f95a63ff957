"""Operations under ``torch.compile``: one node each, the same result."""

import pytest
import torch

from autocomp.core.registry import KERNELS
from autocomp.testing.kernels import cases, triton_names

OPERATORS = [name for name, found in KERNELS.items() if found._operator is not None]

CHECKS = ("test_schema", "test_faketensor")
"""The other checks of an operator compile it again; its graph is looked at here."""


def test_everything_with_a_triton_kernel_is_an_operator():
    assert set(triton_names()) <= set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_one_node_of_a_graph(name):
    torch._dynamo.reset()  # all operations share the code of the function below
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
    placed, _ = found.flat.spread(arguments, {})
    operator = getattr(torch.ops.autocomp, name).default
    torch.library.opcheck(operator, tuple(placed), test_utils=CHECKS)
