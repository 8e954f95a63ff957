"""The score of a cache option against the same quantity from the whole model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autocomp.calibrate.stream import CalibrationStream, draw_labels
from autocomp.calibrate.walker import BlockWalker
from autocomp.core.seeds import SeedTree
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.evaluate.head import final_hidden
from autocomp.models import LoadedModel, load, structure
from autocomp.models.attention import compressing, decode_attention, set_cache_spec

TOKENS = ("kivi-k2v2g4r8", "kivi-k4v4g4r8", "kivi-k8v8g4r8")
SPECS = (DENSE, *map(LayerSpec.parse, TOKENS))
WINDOWS = torch.randint(3, 260, (5, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["tiny_llama_path", "tiny_gpt2_path"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load(str(request.getfixturevalue(request.param)))


def scores(
    loaded: LoadedModel, sample_tokens: int, windows: Tensor = WINDOWS
) -> dict[str, dict[str, float]]:
    walker = BlockWalker(structure(loaded.model), windows, batch_size=2)
    options = {site.name: SPECS for site in loaded.sketch.caches()}
    stream = CalibrationStream(
        walker, loaded.sketch, SeedTree(0), "d", sample_tokens, caches=options
    )
    for _ in stream.forward():
        continue
    return {name: found for block in stream.backward() for name, found in block.caches.items()}


def outputs(loaded: LoadedModel, name: str, run: Callable[[], object]) -> Tensor:
    """An attention's output of each batch, (tokens, hidden)."""
    seen: list[Tensor] = []

    def keep(_: object, __: object, output: tuple[Tensor, ...]) -> None:
        seen.append(output[0])
        if output[0].requires_grad:
            output[0].retain_grad()

    handle = loaded.model.get_submodule(name).register_forward_hook(keep)
    run()
    handle.remove()
    return seen


def test_equals_the_gradient_of_the_whole_model(loaded: LoadedModel) -> None:
    found = scores(loaded, sample_tokens=500)
    batches = WINDOWS.split(2)
    for site in loaded.sketch.caches():
        name = loaded.sketch.owner[site.name]
        generator = torch.Generator().manual_seed(SeedTree(0).child("labels").seed)

        def backward(generator: torch.Generator = generator) -> None:
            for batch in batches:
                embedded = loaded.model.get_input_embeddings()(batch).requires_grad_(True)
                logits = loaded.model(inputs_embeds=embedded).logits.flatten(0, 1)
                labels = draw_labels(torch.softmax(logits.detach(), -1), generator)
                loss = torch.nn.functional.cross_entropy(
                    logits, labels.squeeze(1), reduction="sum"
                )
                loss.backward()

        exact = outputs(loaded, name, backward)
        for spec in SPECS[1:]:
            set_cache_spec(loaded.model.get_submodule(name), spec.cache)
            with decode_attention(loaded.model), torch.no_grad():
                changed = outputs(loaded, name, lambda: [loaded.model(b) for b in batches])
            set_cache_spec(loaded.model.get_submodule(name), None)
            products = [
                (y.grad * (z - y.detach())).sum(-1).flatten()
                for y, z in zip(exact, changed, strict=True)
            ]
            expected = 0.5 * torch.cat(products).square().mean().item()
            assert found[site.name][spec.token()] == pytest.approx(expected, rel=1e-2)


def test_more_bits_cost_less_and_full_precision_nothing(loaded: LoadedModel) -> None:
    found = scores(loaded, sample_tokens=500)
    assert len(found) == loaded.sketch.num_layers
    for values in found.values():
        assert values["dense"] == 0
        ladder = [values[token] for token in TOKENS]
        assert ladder == sorted(ladder, reverse=True)
        assert ladder[0] > 4 * ladder[1] > 0  # a step is a fifth, its square 25 times less
    assert not compressing(loaded.model)


def test_reads_up_to_the_batch_that_completes_the_sample(loaded: LoadedModel) -> None:
    assert scores(loaded, sample_tokens=40) == scores(loaded, 500, WINDOWS[:2])
    assert scores(loaded, sample_tokens=49) == scores(loaded, 500, WINDOWS[:4])


def test_walking_and_measuring_see_the_compressed_cache(loaded: LoadedModel) -> None:
    walker = BlockWalker(structure(loaded.model), WINDOWS, batch_size=2)
    exact = final_hidden(loaded.model, WINDOWS)
    for site in loaded.sketch.caches():
        set_cache_spec(loaded.model.get_submodule(loaded.sketch.owner[site.name]), SPECS[1].cache)
    measured = final_hidden(loaded.model, WINDOWS)
    with decode_attention(loaded.model):
        for index, batches in walker.walk():
            last = walker.advance(index, batches)
    walked = torch.cat([walker.layout.final_norm(batch.hidden) for batch in last])
    torch.testing.assert_close(walked, measured, rtol=1e-4, atol=1e-4)
    unstored = SPECS[1].cache.residual_length
    torch.testing.assert_close(measured[:, :unstored], exact[:, :unstored], rtol=1e-5, atol=1e-5)
    assert (measured - exact)[:, unstored:].abs().max() > 1e-2
