"""``autocomp generate``: let a compressed model speak."""

from typing import Annotated, Any

from typer import Argument, Option

from autocomp.cli.console import console, progress, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.core.errors import ConfigError


def generate(
    path: Annotated[str, Argument(help="Native or Hugging Face folder, or a model id.")],
    prompt: Annotated[str, Argument(help="The text to continue.")],
    output: Output,
    max_new_tokens: Annotated[int, Option(help="Longest continuation.", min=1)] = 64,
    temperature: Annotated[float, Option(help="0 is greedy.", min=0)] = 0.0,
    chat: Annotated[bool, Option("--chat", help="Wrap the prompt in the chat template.")] = False,
    seed: Annotated[int, Option(help="For a temperature above 0.")] = 0,
) -> None:
    """Continue a prompt.

    - `autocomp generate best "The three states of matter are"`
    - `autocomp generate best "What is a list?" --chat --max-new-tokens 100`
    """
    import torch
    from transformers import TextStreamer

    from autocomp.evaluate.files import load_any
    from autocomp.layers.native import is_native
    from autocomp.models.device import body_dtype, resolve_device

    quiet_libraries()
    place = resolve_device("auto")
    # packed codes have kernels for bf16 inputs even where dense products are faster in fp32
    dtype = torch.bfloat16 if is_native(path) else body_dtype(place)
    with progress(quiet=output.quiet) as listener:
        listener.start(f"loading {path}")
        model: Any
        tokenizer: Any
        model, tokenizer = load_any(path, place, dtype, "packed")
        listener.finish()
    if chat:
        if tokenizer.chat_template is None:
            raise ConfigError(f"{path} has no chat template: leave out --chat.")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat)
    torch.manual_seed(seed)
    ids = model.generate(
        input_ids=inputs["input_ids"].to(model.device),
        attention_mask=inputs["attention_mask"].to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        streamer=None if output.json else TextStreamer(tokenizer, skip_special_tokens=True),
    )
    if output.json:
        new = ids[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        show_json({"path": path, "prompt": prompt, "text": text, "tokens": len(new)})
    else:
        console().print()
