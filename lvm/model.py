"""The decoder: a LLaMA (arXiv 2302.13971) over picture codes, as in LVM (arXiv 2312.00785).

Pre-RMSNorm, rotary positions (half-split layout), SwiGLU, no dropout; grouped-query heads and biases of attention if
asked for. The numeric type is that of the weights; norms, rotations and the loss are computed in float32 whatever it
is. The model knows nothing of parallelism, of windows or of tokenizers, and reads and writes Hugging Face folders.
Attention, the head's cross-entropy and a folder's files stand in files beside it; it imports nothing else of ours.

    model = LVM(LVMConfig(num_codes=1024, hidden_size=128, intermediate_size=344, num_layers=4, num_heads=2))
    logits = model(tokens)            # int64 [b, t] -> [b, t, v]
    nll = model.nll(window)           # int64 [b, t + 1] -> float32 [b, t]; [b, t, v] never exists whole
    loss, nll = model.loss(window, weights)    # what training descends: sum of weights [b, t] x nll

| weights        | start                                                                              |
|----------------|------------------------------------------------------------------------------------|
| all matrices   | N(0, 0.02), no scaling by depth or width, as published                             |
| norms          | 1                                                                                  |
| biases         | 0                                                                                  |
Each is drawn from a generator keyed by (seed, its name): the same for any order, device and mesh.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lvm.attention import AttentionName, Mask, attend, attention_mask, choose_attention
from lvm.cross_entropy import next_token_nll, rows_at_once, weighted_nll
from lvm.model_folder import ModelError, read_json, stored_tensors, write_json

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int

NUM_SPECIAL = 100  # vocabulary slots beyond the codes: BOS, EOS, PAD and 97 spare ones, as released
EMBED_SCALE, HEAD_SCALE = 0.2, 0.06  # of weights that start from a codebook; measured on the demo's net (docs/log.md)


@dataclass(frozen=True)
class LVMConfig:
    num_codes: int = 8192  # K, the tokenizer's codebook; BOS is K, EOS K + 1, PAD K + 2
    vocab_size: int = 0  # 0: num_codes + 100; less than num_codes + 3 means a model without special tokens
    hidden_size: int = 1024
    intermediate_size: int = 2688
    num_layers: int = 22
    num_heads: int = 8
    num_kv_heads: int = 0  # 0: num_heads; fewer: grouped-query attention
    head_size: int = 0  # 0: hidden_size / num_heads
    max_position: int = 4096  # the context, in fed tokens
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False  # the head is the embedding
    qk_norm: bool = False  # RMSNorm of each head of q and k, before rotation (arXiv 2302.05442, as in Qwen3)
    attention_bias: bool = False  # of q, k, v and o, as DeLVM's models have them
    z_loss: float = 0.0  # training adds this times logsumexp(logits)^2 to each target's loss (arXiv 2204.02311)
    tokens_per_picture: int | None = 256  # None: an imported folder that does not say
    prompt_bos: bool = True  # prompts start with BOS
    tokenizer_fingerprint: str = ""  # of the tokenizer whose codes it was trained on; "": unknown

    def __post_init__(self) -> None:
        set_field = lambda name, value: object.__setattr__(self, name, value)
        set_field("vocab_size", self.vocab_size or self.num_codes + NUM_SPECIAL)
        set_field("num_kv_heads", self.num_kv_heads or self.num_heads)
        if not self.head_size and self.hidden_size % self.num_heads:
            raise ModelError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        set_field("head_size", self.head_size or self.hidden_size // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_size % 2:
            raise ModelError(f"head_size {self.head_size} is odd; rotary positions need an even one")
        if not 0 <= self.z_loss < math.inf:
            raise ModelError(f"z_loss is {self.z_loss:g}; use 0 or more, 1e-4 is usual")
        if self.vocab_size < self.num_codes:
            raise ModelError(f"vocab_size {self.vocab_size} is below num_codes {self.num_codes}")

    @property
    def has_special_tokens(self) -> bool:
        return self.vocab_size >= self.num_codes + 3

    @property
    def bos(self) -> int:
        return self._special(0)

    @property
    def eos(self) -> int:
        return self._special(1)

    @property
    def pad(self) -> int:
        return self._special(2)

    def _special(self, offset: int) -> int:
        if not self.has_special_tokens:
            raise ModelError(
                f"vocab_size {self.vocab_size} with {self.num_codes} codes leaves no room for BOS, EOS and PAD: "
                "this model can be prompted, not trained"
            )
        return self.num_codes + offset

    def pictures_per_window(self, tokens_per_picture: int) -> int:
        """Pictures that the context holds, prompt and answer together: the last code is never fed."""
        return (self.max_position - int(self.prompt_bos) + 1) // tokens_per_picture

    @property
    def num_params(self) -> int:
        """Parameters, the embedding and the head included (the head once if tied)."""
        d = self.hidden_size
        return self.num_layers * self.layer_params + d + self.vocab_size * d * (1 if self.tie_embeddings else 2)

    @property
    def layer_params(self) -> int:
        d, k = self.hidden_size, self.head_size
        attention = 2 * d * k * (self.num_heads + self.num_kv_heads)
        biases = d + k * (self.num_heads + 2 * self.num_kv_heads) if self.attention_bias else 0
        return attention + biases + 3 * d * self.intermediate_size + 2 * d + (2 * k if self.qk_norm else 0)

    def flops_per_token(self, seq_len: int, causal: bool = False) -> int:
        """Training FLOPs a token: 6 (N - input embedding) + 12 L d T (PaLM, arXiv 2204.02311, appendix B).

        `causal` counts the half of attention that is needed, 6 L d T. Recomputation and padding never count.
        """
        width = self.num_heads * self.head_size
        matrices = self.num_params - (0 if self.tie_embeddings else self.vocab_size * self.hidden_size)
        return 6 * matrices + (6 if causal else 12) * self.num_layers * width * seq_len


def rope_angles(
    positions: "Int[Tensor, '*b t']", head_size: int, theta: float
) -> "tuple[Float32[Tensor, '*b t half'], Float32[Tensor, '*b t half']]":
    """Cosines and sines of the rotary angles of each position, float32 (RoFormer, arXiv 2104.09864)."""
    half = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() * (1.0 / theta ** (half / head_size))
    return angles.cos(), angles.sin()


def apply_rope(
    x: "Float[Tensor, 'b h t k']", cos: "Float32[Tensor, '*b t half']", sin: "Float32[Tensor, '*b t half']"
) -> "Float[Tensor, 'b h t k']":
    """Rotate the pairs (i, i + k/2) of each head, in float32. `cos`, `sin` are [t, k/2] or [b, t, k/2]."""
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)  # one for all heads
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def document_positions(fed: "Int[Tensor, 'b t']", bos: int) -> "tuple[Int[Tensor, 'b t'], Int[Tensor, 'b t']]":
    """Positions that restart at each BOS (and at 0 for a piece that a window cut), and the number of the document."""
    starts = fed == bos
    index = torch.arange(fed.shape[1], device=fed.device).expand_as(fed)
    last_start = torch.where(starts, index, 0).cummax(dim=1).values
    return index - last_start, starts.long().cumsum(dim=1)


class RMSNorm(nn.Module):
    """x / rms(x), computed in float32, times a weight (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: "Float[Tensor, '*b d']") -> "Float[Tensor, '*b d']":
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: LVMConfig):
        super().__init__()
        self.head_size = config.head_size
        self.grouped = config.num_kv_heads != config.num_heads
        width, kv_width = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        self.q = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.k = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.v = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o = nn.Linear(width, config.hidden_size, bias=config.attention_bias)
        self.q_norm: nn.Module = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else nn.Identity()

    def project(
        self, x: "Float[Tensor, 'b t d']", cos: Tensor, sin: Tensor
    ) -> "tuple[Float[Tensor, 'b h t k'], Float[Tensor, 'b g t k'], Float[Tensor, 'b g t k']]":
        """Rotated queries, rotated keys and values of these tokens, by head."""
        q, k, v = (rearrange(f(x), "b t (h k) -> b h t k", k=self.head_size) for f in (self.q, self.k, self.v))
        return apply_rope(self.q_norm(q), cos, sin), apply_rope(self.k_norm(k), cos, sin), v

    def forward(self, x: "Float[Tensor, 'b t d']", cos: Tensor, sin: Tensor, mask: Mask) -> "Float[Tensor, 'b t d']":
        q, k, v = self.project(x, cos, sin)
        return self.o(rearrange(attend(q, k, v, mask), "b h t k -> b t (h k)"))


class SwiGLU(nn.Module):
    def __init__(self, config: LVMConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: "Float[Tensor, 'b t d']") -> "Float[Tensor, 'b t d']":
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config: LVMConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: "Float[Tensor, 'b t d']", cos: Tensor, sin: Tensor, mask: Mask) -> "Float[Tensor, 'b t d']":
        return self.transform(self.attend(x, cos, sin, mask))

    def attend(self, x: "Float[Tensor, 'b t d']", cos: Tensor, sin: Tensor, mask: Mask) -> "Float[Tensor, 'b t d']":
        return x + self.attention(self.attention_norm(x), cos, sin, mask)

    def transform(self, x: "Float[Tensor, 'b t d']") -> "Float[Tensor, 'b t d']":
        return x + self.mlp(self.mlp_norm(x))


class LVM(nn.Module):
    def __init__(self, config: LVMConfig, seed: int = 0):
        """Weights as published, from `seed`; on the meta device (`with torch.device("meta")`) nothing is drawn."""
        super().__init__()
        self.config = config
        self.attention_implementation: AttentionName = "sdpa"  # lvm/attention.py; of this process, not of the weights
        self.fused_loss = False  # compile what `loss` does between products; likewise
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        if not self.embed.weight.is_meta:
            self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, seed))

    @torch.no_grad()
    def start_from_codebook(self, codebook: "Float[Tensor, 'codes c']", seed: int = 0) -> None:
        """Start the embedding and the head of each code as random Fourier features of its codebook vector.

        Codes that stand for like patches then start alike, as a Gaussian kernel has it (Rahimi and Recht 2007); a short
        run need not find that out. Call it before training; special tokens keep their start. `codebook` is the
        tokenizer's, of any scale. Raises `ModelError` for another number of codes.
        """
        if len(codebook) != self.config.num_codes:
            raise ModelError(
                f"the codebook has {len(codebook)} codes, the model {self.config.num_codes}; use its tokenizer"
            )
        weights = {"embed.weight": (self.embed.weight, EMBED_SCALE)}
        if not self.config.tie_embeddings:
            weights["head.weight"] = (self.head.weight, HEAD_SCALE)
        for name, (weight, scale) in weights.items():
            features = fourier_features(codebook.float().cpu(), weight.shape[1], f"{seed}:{name}:codebook")
            weight[: len(codebook)] = (scale * features).to(weight)

    def hidden(
        self,
        tokens: "Int[Tensor, 'b t']",
        positions: "Int[Tensor, 'b t'] | None" = None,
        documents: "Int[Tensor, 'b t'] | None" = None,
    ) -> "Float[Tensor, 'b t d']":
        """What the head reads. Positions default to 0, 1, ...; with `documents`, attention stays inside each."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        cos, sin = rope_angles(positions, self.config.head_size, self.config.rope_theta)
        x = self.embed(tokens)
        name = choose_attention(self.attention_implementation, x.device, x.dtype, documents is not None)
        mask = attention_mask(name, (tokens.shape[0], tokens.shape[1]), x.device, documents)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)

    def forward(
        self,
        tokens: "Int[Tensor, 'b t']",
        positions: "Int[Tensor, 'b t'] | None" = None,
        documents: "Int[Tensor, 'b t'] | None" = None,
    ) -> "Float[Tensor, 'b t v']":
        """Logits of the token after each fed one, in the type of the weights."""
        return self.head(self.hidden(tokens, positions, documents))

    def nll(
        self,
        tokens: "Int[Tensor, 'b t_plus_1']",
        positions: "Int[Tensor, 'b t'] | None" = None,
        documents: "Int[Tensor, 'b t'] | None" = None,
    ) -> "Float32[Tensor, 'b t']":
        """-log p(tokens[:, 1:]) in nats. `positions` and `documents` are those of the fed tokens[:, :-1]."""
        x = self.hidden(tokens[:, :-1], positions, documents).flatten(0, 1)
        targets = tokens[:, 1:].flatten()
        rows = rows_at_once(self.config.vocab_size, x.device)
        if len(targets) <= rows:
            return next_token_nll(x, self.head.weight, targets).view(tokens.shape[0], -1)
        pieces = [  # the logits of a piece are computed again in the backward pass
            checkpoint(next_token_nll, xs, self.head.weight, ts, use_reentrant=False)
            for xs, ts in zip(x.split(rows), targets.split(rows))
        ]
        return torch.cat(pieces).view(tokens.shape[0], -1)

    def loss(
        self,
        tokens: "Int[Tensor, 'b t_plus_1']",
        weights: "Float32[Tensor, 'b t']",
        positions: "Int[Tensor, 'b t'] | None" = None,
        documents: "Int[Tensor, 'b t'] | None" = None,
    ) -> "tuple[Float32[Tensor, ''], Float32[Tensor, 'b t']]":
        """Sum of weights x (nll + z_loss logsumexp^2), to descend, and the nll of all targets, without a gradient.

        Its gradients are those of `nll` and are made in the forward pass: a quarter less work for the head.
        """
        x = self.hidden(tokens[:, :-1], positions, documents).flatten(0, 1)
        rows = rows_at_once(self.config.vocab_size, x.device)
        targets = tokens[:, 1:].flatten()
        z_loss, fused = self.config.z_loss, self.fused_loss
        loss, nll = weighted_nll(x, self.head.weight, targets, weights.flatten(), z_loss, rows, fused)
        return loss, nll.view(tokens.shape[0], -1)

    def num_params(self) -> int:
        return self.config.num_params

    def flops_per_token(self, seq_len: int, causal: bool = False) -> int:
        return self.config.flops_per_token(seq_len, causal)

    @staticmethod
    def from_pretrained(
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "LVM":
        """A model from a Hugging Face folder, of a Llama or (with qk_norm) a Qwen3: safetensors or pytorch_model.bin.

        `dtype=None` keeps the stored type. Raises `ModelError` naming the file for anything missing or unsupported.
        """
        folder = Path(path)
        config = config_from_hugging_face(read_json(folder / "config.json"), str(folder / "config.json"))
        with torch.device("meta"):
            model = LVM(config)
        missing = {hugging_face_name(name): parameter for name, parameter in model.named_parameters()}
        ours = {hugging_face_name(name): name for name, _ in model.named_parameters()}
        state = {}
        for file, name, tensor in stored_tensors(folder):
            if name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight"):
                continue
            if name not in missing:
                raise ModelError(f"{file} holds {name!r}, which a model of its config.json does not have")
            expected = missing.pop(name).shape
            if tensor.shape != expected:
                raise ModelError(f"{file}: {name} is {list(tensor.shape)}; config.json makes it {list(expected)}")
            state[ours[name]] = tensor.to(device=device, dtype=dtype or tensor.dtype)
        if missing:
            raise ModelError(f"{folder} lacks {len(missing)} tensors of its config.json, first {next(iter(missing))}")
        model.load_state_dict(state, strict=False, assign=True)
        if config.tie_embeddings:
            model.head.weight = model.embed.weight
        return model.requires_grad_(True)

    def save_pretrained(
        self, path: str | os.PathLike[str], dtype: torch.dtype | None = None, shard_bytes: int = 5 * 10**9
    ) -> None:
        """Write config.json, generation_config.json and safetensors that transformers' AutoModelForCausalLM opens.

        As a LlamaForCausalLM; with qk_norm, which a Llama does not have, as a Qwen3ForCausalLM.
        """
        from safetensors.torch import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            hugging_face_name(name): parameter.detach().to("cpu", dtype or parameter.dtype).contiguous()
            for name, parameter in self.named_parameters()
        }
        shards: list[dict[str, Tensor]] = [{}]
        for name, tensor in tensors.items():
            if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > shard_bytes:
                shards.append({})
            shards[-1][name] = tensor
        files = ["model.safetensors"]
        if len(shards) > 1:
            files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        for file, shard in zip(files, shards):
            save_file(shard, folder / f".tmp-{file}", metadata={"format": "pt"})
            os.replace(folder / f".tmp-{file}", folder / file)
        if len(shards) > 1:
            weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
            total = sum(tensor.nbytes for tensor in tensors.values())
            write_json(
                folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
            )
        stored = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        write_json(folder / "generation_config.json", generation_to_hugging_face(self.config))
        write_json(folder / "config.json", config_to_hugging_face(self.config, stored))  # last: it makes a model of it


def initial_weight(name: str, shape: torch.Size, seed: int) -> "Float32[Tensor, '*shape']":
    """The start of one parameter, the same for any order of drawing: N(0, 0.02), ones for norms, zeros for biases."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
    return torch.empty(shape).normal_(0.0, 0.02, generator=_generator(f"{seed}:{name}"))


def _generator(key: str) -> torch.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def fourier_features(vectors: "Float[Tensor, 'n c']", width: int, key: str) -> "Float[Tensor, 'n width']":
    """sqrt(2) cos(W x + b); inner products are a Gaussian kernel's, half as wide as `vectors` are long in the mean."""
    generator = _generator(key)
    scaled = vectors * (2 / vectors.norm(dim=1).mean())
    directions = torch.empty(vectors.shape[1], width).normal_(generator=generator)
    phases = torch.empty(width).uniform_(0, 2 * math.pi, generator=generator)
    return math.sqrt(2) * torch.cos(scaled @ directions + phases)


_RENAMED = {
    "attention.": "self_attn.",
    ".q.": ".q_proj.",
    ".k.": ".k_proj.",
    ".v.": ".v_proj.",
    ".o.": ".o_proj.",
    ".gate.": ".gate_proj.",
    ".up.": ".up_proj.",
    ".down.": ".down_proj.",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "embed.": "embed_tokens.",
}


def hugging_face_name(name: str) -> str:
    """layers.0.attention.q.weight -> model.layers.0.self_attn.q_proj.weight, as Llama and Qwen3 name it."""
    if name == "head.weight":
        return "lm_head.weight"
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    return f"model.{name}"


def generation_to_hugging_face(config: LVMConfig) -> dict[str, Any]:
    """What `generate` does if nothing else is said: one picture, drawn from the whole distribution of codes alone.

    transformers would keep the 50 likeliest codes and stop after 20 tokens, and take ids 1 and 2 for BOS and EOS.
    """
    values: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    if config.has_special_tokens:
        values |= {"bos_token_id": config.bos, "eos_token_id": config.eos, "pad_token_id": config.pad}
    if config.vocab_size > config.num_codes:
        values["suppress_tokens"] = list(range(config.num_codes, config.vocab_size))
    if config.tokens_per_picture:
        values |= {"max_new_tokens": config.tokens_per_picture, "min_new_tokens": config.tokens_per_picture}
    return values


def config_to_hugging_face(config: LVMConfig, dtype: str) -> dict[str, Any]:
    special = config.has_special_tokens
    return {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if config.qk_norm else "llama",
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos if special else None,
        "eos_token_id": config.eos if special else None,
        "pad_token_id": config.pad if special else None,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position,
        "mlp_bias": False,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,  # where transformers 4 looks
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "num_codes": config.num_codes,
        "tokens_per_picture": config.tokens_per_picture,
        "prompt_bos": config.prompt_bos,
        "tokenizer_fingerprint": config.tokenizer_fingerprint,
        "z_loss": config.z_loss,
    }


def config_from_hugging_face(values: dict[str, Any], file: str = "config.json") -> LVMConfig:
    """Our config of a Llama's or Qwen3's, or of DeLVM's `internlm`, which is a Llama with attention biases.

    Keys of ours that it lacks: as the released 7B, prompts without BOS.
    """

    def need(key: str) -> Any:
        if values.get(key) is None:
            raise ModelError(f"{file} does not say {key!r}; it must be the config of a LlamaForCausalLM")
        return values[key]

    kind = values.get("model_type")
    if kind not in ("llama", "qwen3", "internlm"):
        raise ModelError(f"{file}: model_type is {kind!r}; only 'llama', 'qwen3' and 'internlm' folders can be read")
    delvm = kind == "internlm"
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    unsupported = {
        "mlp_bias": values.get("mlp_bias", False),
        "hidden_act": "" if values.get("hidden_act", "silu") == "silu" else values["hidden_act"],
        "rope_type": "" if (type_ := rope.get("rope_type", rope.get("type", "default"))) == "default" else type_,
        "use_sliding_window": values.get("use_sliding_window", False),
    }
    for key, value in unsupported.items():
        if value:
            raise ModelError(f"{file}: {key} {value!r} is not supported; the models read here have silu and plain RoPE")
    vocab_size = need("vocab_size")
    released = vocab_size == 8292
    return LVMConfig(
        num_codes=values.get("num_codes") or (8192 if released else vocab_size),
        vocab_size=vocab_size,
        hidden_size=need("hidden_size"),
        intermediate_size=need("intermediate_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=need("num_attention_heads"),
        num_kv_heads=values.get("num_key_value_heads") or 0,
        head_size=values.get("head_dim") or 0,
        max_position=values.get("max_position_embeddings", 2048 if delvm else 4096),
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tie_embeddings=values.get("tie_word_embeddings", False),
        qk_norm=kind == "qwen3",
        attention_bias=values.get("bias", True) if delvm else values.get("attention_bias", False),
        z_loss=float(values.get("z_loss") or 0.0),
        tokens_per_picture=values.get("tokens_per_picture") or (256 if released or delvm else None),
        prompt_bos=values.get("prompt_bos", False),
        tokenizer_fingerprint=values.get("tokenizer_fingerprint") or "",
    )
