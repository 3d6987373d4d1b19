"""What a training run needs before it is started: lvm cost model=3b nodes=8 gpus=8 tokens=420e9

Notation: N parameters, E = v d of them the input embedding, L layers, d width, f width of the MLP, h heads and g
key/value heads of size k, v vocabulary, T context, R = nodes x gpus ranks.

FLOPs a token   6 (N - E) + 12 L h k T; causal: 6 (N - E) + 6 L h k T (PaLM, arXiv 2204.02311, appendix B)
days            tokens x FLOPs a token / (R x peak x mfu) / 86,400; MFU counts all of attention, the causal variant half
weights, gradients, moments
                16 N / S bytes a GPU: float32 weights and gradients, two float32 AdamW moments, sharded over
                S = R / replicate ranks
gathered        one rank without recomputation: 2 N, all weights cast to bf16 in the step. Else (one rank: beside the
                bf16 weights of layers that are not recomputed) bf16 weights of two
                layers (the one at work and the next) and of embedding, final norm and head, which stay gathered
                (2 bytes), and the gradients of one layer and of those in bf16 and float32 on their way to be reduced
                (6 bytes)
logits          2^25 elements at one time, in bf16, and in float32 with their softmax and gradient: 14 bytes each
activations     a token and layer: 2 (4 d + 2 h k + 2 g k + 3 f) + 4 h bytes. Kept in bf16 for the backward pass: four
                rows of d (the inputs of both norms and what these put out), queries and the output of attention (h k),
                keys and values (g k), gate, up and their product (f); and attention's log-sum-exp in float32.
                activation_checkpointing=selective keeps products and attention: 2 (2 d + 2 h k + 2 g k + 2 f) + 4 h;
                mlp of the MLP only what enters it: 2 (2 d + 2 h k + 2 g k) + 4 h; full keeps what enters a layer: 2 d.
                All add one layer of the first kind, which is at work in the backward pass. recomputed_share of the
                layers do so, the others are of the first kind. A token beside: 6 d + 8 (final norm, its float32
                input, tokens). Logits are recomputed
micro-batch     the largest number of windows whose activations fit what is left of memory x (1 - reserve)
checkpoint      12 N bytes: float32 weights and moments. Exported model: 2 N in bf16, 4 N in float32
keys and values 4 L g k bytes a token of context when generating in 16 bits

Memory is an estimate to plan with (allocator, kernels' work space and communication buffers are the reserve's);
`python -m benchmarks.activation_memory` measures the activations. FLOPs and file sizes are exact but for names and
headers. FLOPs spent on recomputation count nowhere: a lower mfu says what they cost.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lvm.commands._options import options_from
from lvm.cross_entropy import LOGITS_AT_ONCE
from lvm.model import LVMConfig
from lvm.runtime import UserError, build, write_json
from lvm.training.parallel import Recomputation, recomputed_layers

SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class CostOptions:
    model: str  # a name in configs/model, or a YAML file
    nodes: int = 1
    gpus: int = 8  # on each node
    tokens: float = 420e9  # to train on; the published runs took 420e9
    seq_len: int | None = None  # T; None: the model's context
    peak: float = 989e12  # bf16 FLOP/s of one GPU, dense (H100 and H200: 989e12; A100: 312e12)
    memory: float = 141e9  # bytes of one GPU (H200: 141e9; H100 and A100: 80e9)
    mfu: float = 0.4  # share of the peak that training reaches; an assumption, replace it by what `lvm bench` says
    reserve: float = 0.1  # share of memory left to the allocator, kernels and communication
    replicate: int = 1  # copies of weights and moments, trainer.parallel.replicate
    activation_checkpointing: Recomputation = "none"  # trainer.parallel.activation_checkpointing
    recomputed_share: float = 1.0  # trainer.parallel.recomputed_share

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus", "tokens", "peak", "memory"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name):g}; it must be above 0")
        if self.seq_len is not None and self.seq_len < 1:
            raise UserError(f"seq_len is {self.seq_len}; use 1 or more")
        if not 0 < self.mfu <= 1 or not 0 <= self.reserve < 1:
            raise UserError(f"mfu is {self.mfu:g} and reserve {self.reserve:g}; both are shares, from 0 to 1")
        if not 0 <= self.recomputed_share <= 1:
            raise UserError(f"recomputed_share is {self.recomputed_share:g}; it is a share, from 0 to 1")
        if self.replicate < 1 or self.nodes * self.gpus % self.replicate:
            raise UserError(f"replicate is {self.replicate}; use a divisor of {self.nodes} nodes x {self.gpus} GPUs")

    @property
    def recomputed(self) -> tuple[Recomputation, float]:
        return self.activation_checkpointing, self.recomputed_share


# The formulas of the docstring.


def gathered_bytes(config: LVMConfig, ranks: int, recomputation: Recomputation = "none", share: float = 1.0) -> int:
    """Beside a GPU's own shard: 16-bit weights and passing gradients."""
    recomputed = len(recomputed_layers(config.num_layers, recomputation, share))
    if ranks == 1 and not recomputed:
        return 2 * config.num_params
    layer = config.layer_params
    outer = config.num_params - config.num_layers * layer
    cast = 2 * (config.num_layers - recomputed) * layer if ranks == 1 else 0
    return 2 * (2 * layer + outer) + 6 * (layer + outer) + cast


def activation_bytes_per_token(config: LVMConfig, recomputation: Recomputation = "none", share: float = 1.0) -> int:
    """What the forward pass keeps."""
    d, f = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    layer = {
        "none": 2 * (4 * d + 2 * queries + 2 * keys + 3 * f) + 4 * config.num_heads,
        "selective": 2 * (2 * d + 2 * queries + 2 * keys + 2 * f) + 4 * config.num_heads,
        "mlp": 2 * (2 * d + 2 * queries + 2 * keys) + 4 * config.num_heads,
        "full": 2 * d,
    }
    recomputed = len(recomputed_layers(config.num_layers, recomputation, share))
    return recomputed * layer[recomputation] + (config.num_layers - recomputed) * layer["none"] + 6 * d + 8


def recomputed_bytes_per_token(config: LVMConfig, recomputation: Recomputation, share: float = 1.0) -> int:
    """What the layer at work in the backward pass keeps beside that."""
    if not recomputed_layers(config.num_layers, recomputation, share):
        return 0
    return activation_bytes_per_token(replace(config, num_layers=1)) - 6 * config.hidden_size - 8


def cache_bytes_per_token(config: LVMConfig) -> int:
    return 4 * config.num_layers * config.num_kv_heads * config.head_size


def cost(config: LVMConfig, options: CostOptions) -> dict[str, Any]:
    """Every figure by name; bytes, FLOPs and days as the docstring says."""
    ranks, seq_len = options.nodes * options.gpus, options.seq_len or config.max_position
    states, recomputed = 16 * config.num_params / ranks * options.replicate, options.recomputed
    gathered, logits = gathered_bytes(config, ranks, *recomputed), 14 * LOGITS_AT_ONCE["cuda"]
    token = activation_bytes_per_token(config, *recomputed) + recomputed_bytes_per_token(config, *recomputed)
    window = token * seq_len
    usable = options.memory * (1 - options.reserve)
    micro_batch = max(0, math.floor((usable - states - gathered - logits) / window))
    flops, causal = config.flops_per_token(seq_len), config.flops_per_token(seq_len, causal=True)
    tokens_per_second = ranks * options.peak * options.mfu / flops
    return {
        "options": asdict(options) | {"seq_len": seq_len},
        "params": config.num_params,
        "params_without_embeddings": config.num_layers * config.layer_params + config.hidden_size,
        "memory_per_gpu": {
            "usable": usable,
            "weights_gradients_moments": states,
            "gathered": gathered,
            "logits": logits,
            "activations_per_window": window,
            "with_largest_micro_batch": states + gathered + logits + micro_batch * window,
        },
        "largest_micro_batch": micro_batch,
        "flops_per_token": flops,
        "flops_per_token_causal": causal,
        "flops": flops * options.tokens,
        "flops_causal": causal * options.tokens,
        "tokens_per_second": tokens_per_second,
        "days": options.tokens / tokens_per_second / SECONDS_A_DAY,
        "gpu_hours": options.tokens / tokens_per_second / 3600 * ranks,
        "checkpoint_bytes": 12 * config.num_params,
        "export_bytes": {"bfloat16": 2 * config.num_params, "float32": 4 * config.num_params},
        "cache_bytes_per_token": cache_bytes_per_token(config),
    }


def report(figures: dict[str, Any]) -> str:
    """The figures as lines to read."""
    options, memory = figures["options"], figures["memory_per_gpu"]
    gb = lambda value: f"{value / 1e9:,.2f} GB"
    micro_batch, seq_len = figures["largest_micro_batch"], options["seq_len"]
    rows = [
        ("parameters", f"{figures['params']:,} ({figures['params_without_embeddings']:,} without embedding and head)"),
        ("FLOPs a token", f"{figures['flops_per_token']:.4g} ({figures['flops_per_token_causal']:.4g} causal)"),
        ("FLOPs of the run", f"{figures['flops']:.3g} ({figures['flops_causal']:.3g} causal)"),
        (
            "speed",
            f"{figures['tokens_per_second']:,.0f} tokens/s at {options['mfu']:.0%} of {options['peak']:.3g} FLOP/s",
        ),
        ("time", f"{figures['days']:,.2f} days, {figures['gpu_hours']:,.0f} GPU hours"),
        ("weights and AdamW", f"{gb(memory['weights_gradients_moments'])} a GPU, {gb(memory['gathered'])} gathered"),
        ("activations", f"{gb(memory['activations_per_window'])} a window of {seq_len:,} tokens"),
        (
            "largest micro-batch",
            f"{micro_batch} windows a GPU, {gb(memory['with_largest_micro_batch'])} of {gb(memory['usable'])}"
            if micro_batch
            else f"none: one window does not fit {gb(memory['usable'])}; use more GPUs or a smaller seq_len",
        ),
        (
            "checkpoint",
            f"{gb(figures['checkpoint_bytes'])}; exported {gb(figures['export_bytes']['bfloat16'])} in bf16",
        ),
        ("keys and values", f"{figures['cache_bytes_per_token']:,} bytes a token in 16 bits"),
    ]
    title = (
        f"{options['model']}: {options['tokens']:.4g} tokens on {options['nodes']} nodes x {options['gpus']} GPUs of "
        f"{options['memory'] / 1e9:g} GB"
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def model_config(name: str) -> LVMConfig:
    """The model of configs/model/NAME.yaml, or of a YAML file."""
    from lvm.runtime.config_files import load_config

    return build(LVMConfig, load_config(name if name.endswith((".yaml", ".yml")) else f"model/{name}"), "model")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="model, nodes, gpus, tokens, seq_len, ...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_intermixed_args(argv)
    options = options_from(CostOptions, arguments.options)
    figures = cost(model_config(options.model), options)
    print(report(figures))
    if arguments.json:
        write_json(arguments.json, json.loads(json.dumps(figures)))
    return 0
