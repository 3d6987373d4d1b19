"""Prompts of pictures: what comes next in a sequence, and what a query becomes after some examples.

    from lvm import Prompter
    prompter = Prompter.from_pretrained("runs/demo/model", "world-48px-f8-1024")
    answer = prompter.analogy([("in1.png", "out1.png"), ("in2.png", "out2.png")], "query.png", num_candidates=4)
    answer.pictures, answer.scores      # uint8 [4, 1, y, x, 3], float32 [4]

Where the context is exceeded the window moves by whole tuples (pairs for an analogy, frames for a sequence), so that
inputs and annotations keep their places; BOS stays before it, and the pictures left in it are fed anew.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from lvm.inference.decoded import PICTURES_AT_ONCE
from lvm.inference.engine import answer_requests
from lvm.inference.rollout import Continuation, Prompt, Rollout, Window, move_window
from lvm.inference.rounds import Rounds
from lvm.inference.sampling import GREEDY, Sampling, check_candidates
from lvm.inference.sliding import continue_on_old_keys
from lvm.model import LVM, LVMConfig
from lvm.pictures.decode import load, to_rgb
from lvm.runtime.errors import UserError
from tokenizer import VQGAN

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

    Picture = str | os.PathLike[str] | Image.Image | UInt8[np.ndarray, "y x 3"]


@dataclass(frozen=True)
class Answer:
    prompt: "UInt8[np.ndarray, 'n y x 3']"  # as the tokenizer was given them
    pictures: "UInt8[np.ndarray, 'candidates num_pictures y x 3']"
    tokens: "Int64[np.ndarray, 'candidates num_pictures t']"
    log_probs: "Float32[np.ndarray, 'candidates num_pictures t']"  # nats, of the full softmax at temperature 1
    left_out: int = 0  # of the prompt's first pictures, which the context did not hold beside the first answer

    @property
    def scores(self) -> "Float32[np.ndarray, 'candidates']":
        """Mean log-probability of a code of each candidate. It favours plain answers: no measure of quality alone."""
        scores: np.ndarray = self.log_probs.mean((1, 2))
        return scores


def check_pair(
    config: LVMConfig,
    vq: VQGAN,
    model: str = "the model",
    tokenizer: str = "the tokenizer",
    remedy: str = "use the tokenizer the model was trained with",
) -> None:
    """Raise `UserError` where the model's codes are not the tokenizer's. What an imported model does not say passes."""
    if config.num_codes != vq.config.num_embeddings:
        wrong = f"{model} has {config.num_codes} codes, {tokenizer} has {vq.config.num_embeddings}"
    elif config.tokens_per_picture not in (None, vq.tokens_per_picture):
        wrong = f"{model} has {config.tokens_per_picture} tokens a picture, {tokenizer} has {vq.tokens_per_picture}"
    elif config.tokenizer_fingerprint not in ("", vq.fingerprint):
        wrong = (
            f"{model} was trained on the codes of tokenizer {config.tokenizer_fingerprint[:12]}, "
            f"{tokenizer} is {vq.fingerprint[:12]}"
        )
    else:
        return
    raise UserError(f"{wrong}: they do not belong together; {remedy}")


class Prompter:
    """A model and its tokenizer, prompted with pictures. Raises `UserError` if they do not belong together."""

    def __init__(self, model: LVM, vq: VQGAN):
        check_pair(model.config, vq)
        self.model, self.vq = model, vq
        self.tokens_per_picture = vq.tokens_per_picture
        self.pictures_per_window = model.config.pictures_per_window(self.tokens_per_picture)
        if self.pictures_per_window < 2:
            raise UserError(
                f"the model's context of {model.config.max_position} tokens does not hold two pictures "
                f"of {self.tokens_per_picture}; it cannot be prompted with pictures"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Prompter":
        """From a Hugging Face folder and a tokenizer's folder or name; on the GPU if there is one."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        vq = VQGAN.from_pretrained(tokenizer).to(device)
        lvm = LVM.from_pretrained(model, dtype=dtype, device=device)
        check_pair(lvm.config, vq, str(model), str(tokenizer))
        return cls(lvm, vq)

    def sequence(
        self,
        pictures: "Sequence[Picture] | UInt8[np.ndarray, 'n y x 3']",
        num_pictures: int = 1,
        num_candidates: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Answer:
        """What follows these pictures. Answers of any length: the window moves on picture by picture.

        `Answer.left_out` of the first pictures are not seen where the context does not hold all.
        """
        sampling = Sampling(temperature, top_k, top_p)
        return self._answer(list(pictures), num_pictures, num_candidates, sampling, seed, tuple_size=1)

    def analogy(
        self,
        pairs: "Sequence[tuple[Picture, Picture]] | UInt8[np.ndarray, 'n 2 y x 3']",
        query: "Picture",
        num_candidates: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Answer:
        """The second half of the pair that `query` begins.

        Of more pairs than the context holds the last ones count; `Answer.left_out` says how many pictures do not.
        """
        for number, pair in enumerate(pairs):
            if len(pair) != 2:
                raise UserError(f"pair {number} has {len(pair)} pictures; a pair is an input and its answer")
        pictures = [picture for pair in pairs for picture in pair] + [query]
        return self._answer(pictures, 1, num_candidates, Sampling(temperature, top_k, top_p), seed, tuple_size=2)

    def _answer(
        self,
        given: "list[Picture]",
        num_pictures: int,
        num_candidates: int,
        sampling: Sampling,
        seed: int,
        tuple_size: int,
    ) -> Answer:
        prompt = self.pixels(given)
        asked = Prompt(self.encode(prompt), num_pictures, tuple_size)
        [(_, found)] = self.continuations([asked], num_candidates, sampling, seed)
        decoded = self.decode(rearrange(found.tokens, "c n t -> (c n) t"))
        pictures = rearrange(decoded, "(c n) ... -> c n ...", c=num_candidates)
        left_out = move_window(len(prompt), self.pictures_per_window - 1, tuple_size)
        return Answer(prompt, pictures, found.tokens, found.log_probs, left_out)

    def continuations(
        self,
        prompts: Sequence[Prompt],
        num_candidates: int = 1,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        window: Window = "tuples",
        progress: Callable[[int], None] | None = None,
        rounds: Rounds | None = None,
    ) -> Iterator[tuple[int, Continuation]]:
        """(number of the prompt, what follows it), each as soon as it is done.

        All that is known to be wanted is answered together. Beyond the context each candidate goes on by itself: the
        window moves by whole tuples (`window="frames"`: picture by picture, as the reference has it), keeps BOS, and
        what is left in it is fed anew; with `window="reuse"` the old keys serve on, faster and not quite the same.
        `progress` is told of pictures as they are drawn, those of each candidate counted. `rounds` keeps what is drawn
        where the window moves and is fed anew, and what a killed process drew is taken from there.
        """
        check_candidates(num_candidates, sampling)
        count = progress or (lambda pictures: None)
        room = self.pictures_per_window
        rollouts = [Rollout(self.model.config, prompt, room, num_candidates, seed, window) for prompt in prompts]
        at_work = list(range(len(rollouts)))
        if window == "reuse":
            for n in [n for n in at_work if rollouts[n].exceeds_window]:
                at_work.remove(n)
                yield n, continue_on_old_keys(self.model, prompts[n], room, rollouts[n].keys, sampling, count)
        one_round = not any(rollouts[n].exceeds_window for n in at_work)
        while at_work:  # the requests of a round have as many candidates: all at first, then one
            asked = [(n, *found) for n in at_work for found in enumerate(rollouts[n].next_requests())]
            drawn = answer_requests(self.model, [request for *_, request in asked], sampling)
            for number, tokens, log_probs in drawn if rounds is None or one_round else rounds.through(drawn):
                n, place, _ = asked[number]
                before = rollouts[n].done
                if not rollouts[n].accept(place, tokens, log_probs):
                    continue
                count((rollouts[n].done - before) * num_candidates)
                if rollouts[n].finished:
                    yield n, rollouts[n].continuation()
            at_work = [n for n in at_work if not rollouts[n].finished]

    def pixels(self, pictures: "list[Picture]") -> "UInt8[np.ndarray, 'n y x 3']":
        """Paths, PIL pictures or arrays at the tokenizer's size, squashed to it with bicubic filtering."""
        if not pictures:
            raise UserError("the prompt holds no picture; give at least one")
        rows, columns = (side * self.vq.config.factor for side in self.vq.config.code_grid)
        squashed = [_as_image(picture).resize((columns, rows), Image.Resampling.BICUBIC) for picture in pictures]
        return np.stack([np.asarray(image) for image in squashed])

    def encode(self, pictures: "UInt8[np.ndarray, 'n y x 3']") -> "Int64[np.ndarray, 'n t']":
        return encode(self.vq, pictures)

    def decode(self, codes: "Int64[np.ndarray, 'n t']") -> "UInt8[np.ndarray, 'n y x 3']":
        return decode(self.vq, codes)


@torch.no_grad()
def encode(vq: VQGAN, pictures: "UInt8[np.ndarray, 'n y x 3']") -> "Int64[np.ndarray, 'n t']":
    device = vq.quant_conv.weight.device
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(pictures)), "n y x c -> n c y x")
    codes = [vq.encode(piece.to(device).float() / 255) for piece in pixels.split(PICTURES_AT_ONCE)]
    return torch.cat(codes).cpu().numpy()


@torch.no_grad()
def decode(vq: VQGAN, codes: "Int64[np.ndarray, 'n t']") -> "UInt8[np.ndarray, 'n y x 3']":
    device, grid = vq.quant_conv.weight.device, vq.config.code_grid
    pieces = torch.from_numpy(np.ascontiguousarray(codes)).to(device).split(PICTURES_AT_ONCE)
    pixels = torch.cat([(vq.decode(piece, grid) * 255).round().to(torch.uint8) for piece in pieces])
    return rearrange(pixels, "n c y x -> n y x c").cpu().numpy()


def _as_image(picture: Any) -> Image.Image:
    if isinstance(picture, (str, os.PathLike)):
        picture = load(os.fspath(picture))
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise UserError(f"a picture is {picture.dtype} {list(picture.shape)}; it must be uint8 [y, x, 3], RGB")
    return Image.fromarray(picture)
