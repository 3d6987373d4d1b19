"""The README.md of an exported folder: what the model is, and how it is prompted in three programs.

Its Python runs in the folder as it stands (a test does so for transformers and this framework).
"""

from dataclasses import dataclass

from lvm.interop.visual_vocabulary import first_character
from lvm.model import LVMConfig


@dataclass(frozen=True)
class Training:
    """What a run's checkpoint says of it."""

    steps: int
    tokens: int


def model_card(config: LVMConfig, dtype: str, training: Training | None) -> str:
    return "\n".join([_facts(config, dtype, training), _vocabulary(config), _prompting(config)])


def _facts(config: LVMConfig, dtype: str, training: Training | None) -> str:
    options = {
        f"{config.num_kv_heads} heads of keys and values": config.num_kv_heads != config.num_heads,
        "biases in attention": config.attention_bias,
        "normalised queries and keys": config.qk_norm,
        "one matrix for embedding and head": config.tie_embeddings,
    }
    trained = f"{training.steps:,} steps, {training.tokens:,} tokens" if training else "not known to the exporter"
    rows = {
        "architecture": "Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM",
        "parameters": f"{config.num_params:,}, stored as {dtype}",
        "layers": f"{config.num_layers} of width {config.hidden_size}, feed-forward {config.intermediate_size}",
        "attention": f"{config.num_heads} heads of size {config.head_size}"
        + "".join(f", {name}" for name, given in options.items() if given),
        "context": f"{config.max_position:,} tokens",
        "codes": f"{config.num_codes:,}",
        "tokens a picture": f"{config.tokens_per_picture or 'not known'}",
        "tokenizer's fingerprint": f"`{config.tokenizer_fingerprint}`" if config.tokenizer_fingerprint else "not known",
        "trained": trained,
        "licence": "not stated: add a `license:` line above",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: transformers
tags: [large-vision-model, visual-sentences]
---
# A large vision model

A decoder over the codes of pictures: it continues a row of pictures by the next one, code by code. A picture becomes
codes, and codes a picture, by the VQGAN with the fingerprint below; codes of another tokenizer mean nothing to it.

| | |
|---|---|
{table}
"""


def _vocabulary(config: LVMConfig) -> str:
    first = first_character(config.num_codes)
    text = f"""Ids 0..{config.num_codes - 1} are codes. As text, code k is the character U+{first:04X} + k:
`tokenizer.json` and `tokenizer.model` (sentencepiece) translate."""
    if not config.has_special_tokens:
        return f"""## Ids

{text} There are no BOS, EOS and PAD.
"""
    use = (
        f"A prompt begins with BOS. `tokenizer.json` puts it before a text; whoever gives ids puts {config.bos} first."
        if config.prompt_bos
        else "A prompt holds codes alone, without BOS."
    )
    return f"""## Ids

{text} BOS is {config.bos}, EOS {config.eos}, PAD {config.pad}; ids from {config.bos} on are never an
answer, and `generation_config.json` suppresses them. {use}
"""


def _prompting(config: LVMConfig) -> str:
    tokens = config.tokens_per_picture or 256
    begin = f"[{config.bos}] + " if config.prompt_bos and config.has_special_tokens else ""
    asked = "" if config.tokens_per_picture else f", max_new_tokens={tokens}, min_new_tokens={tokens}"
    return f"""## Prompting

`codes` are those of whole pictures, row by row, in the order of the sentence; the answer is one picture more. It is
drawn from the whole distribution at temperature 1 (no top-k, no top-p).

With transformers:

```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".")
codes = [0] * {tokens}  # a picture's codes
prompt = torch.tensor([{begin}codes])
answer = model.generate(prompt{asked})[0, prompt.shape[1] :]
```

With the framework that trained it, which puts BOS there where it belongs:

```python
import torch
from lvm.inference import generate
from lvm.model import LVM

model = LVM.from_pretrained(".")
codes = [0] * {tokens}
answer = generate(model, torch.tensor([codes]), num_tokens={tokens}, seed=0).tokens[0, 0]
```

With vLLM, which knows no suppressed ids from a file, so that the codes are named:

```python
from vllm import LLM, SamplingParams

llm = LLM(".")
codes = [0] * {tokens}
one_picture = SamplingParams(max_tokens={tokens}, allowed_token_ids=list(range({config.num_codes})), detokenize=False)
[request] = llm.generate([{{"prompt_token_ids": {begin}codes}}], one_picture)
answer = request.outputs[0].token_ids
```
"""
