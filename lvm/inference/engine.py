"""A list of prompts answered with the cells of a cache kept full.

Prompts that begin alike hang behind one prefix (sharing.py). A cell takes the next prompt as soon as its answer is
done, whatever the others do. How many codes an answer has is known beforehand, so the host waits for the device only to
hand prompts over and to take answers away; on a GPU a step is one captured graph.
"""

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from lvm.inference.cache import Cache, bytes_per_token, cache_dtype
from lvm.inference.sampling import Sampling, draw, signed
from lvm.inference.sharing import Group, group_by_prefix

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int64, UInt64
    from torch import Tensor

    from lvm.model import LVM

CPU_CACHE_BYTES = 2**30  # keys and values of the prompts that are answered together
SCORES_AT_ONCE = 2**22  # elements of the logits of one step


@dataclass(frozen=True)
class Request:
    """Tokens to feed (BOS included), the key of each candidate's noise, and how many codes are to follow."""

    tokens: "Int64[np.ndarray, 't']"
    keys: "UInt64[np.ndarray, 'candidates']"
    num_tokens: int
    first_index: int = 0  # the number of the first code drawn, in its answer
    given: "tuple[Int64[np.ndarray, 't'], ...]" = ()  # answers of one length whose likelihood is wanted too

    @property
    def size(self) -> int:
        """Positions that are fed: the last code never is."""
        return len(self.tokens) + self.num_tokens - 1


Result = tuple[int, "Int64[np.ndarray, 'candidates t']", "Float32[np.ndarray, 'candidates t']"]


@dataclass
class Statistics:
    """What an engine did: how full its steps were, and how many tokens prompts took."""

    steps: int = 0
    cells_stepped: int = 0  # over steps
    cells_at_work: int = 0  # of these with an unfinished answer
    tokens_fed: int = 0  # of prompts, each shared one once
    padding_fed: int = 0  # beside them
    cache_bytes: int = 0  # of the largest cache


def answer_requests(
    model: "LVM",
    requests: Sequence[Request],
    sampling: Sampling,
    cache_bytes: int | None = None,
    compile: bool | None = None,
    statistics: Statistics | None = None,
    nll: "dict[int, Float32[np.ndarray, 'given t']] | None" = None,
) -> Iterator[Result]:
    """(number of the request, codes, log-probabilities) of each, as they are done. All have as many candidates.

    The nats of what requests have `given` are put into `nll`, by number: the prompt is fed once for both.

    `cache_bytes` bounds the keys and values kept at a time (one prompt is always taken); `compile` None: on a GPU.
    """
    if not requests:
        return
    compile = model.embed.weight.is_cuda if compile is None else compile
    statistics = statistics or Statistics()
    for groups in alike(requests, group_by_prefix([request.tokens for request in requests])):
        room = cache_bytes or default_cache_bytes(model)
        batch = make_batch(model, requests, groups, sampling, room, compile, {} if nll is None else nll)
        statistics.cache_bytes = max(statistics.cache_bytes, batch.cache.nbytes)
        yield from batch.run(groups, statistics)
        del batch  # before the next one's cache is made


def default_cache_bytes(model: "LVM") -> int:
    """Half of what is free on the GPU; on a CPU a constant."""
    weight = model.embed.weight
    if not weight.is_cuda:
        return CPU_CACHE_BYTES
    unused = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    return int(torch.cuda.mem_get_info(weight.device)[0] + unused) // 2


@functools.cache
def capturing_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs of a device: for each stream cuBLAS keeps memory of its own."""
    return torch.cuda.Stream(device)


def magnitude(number: int) -> int:
    """Equal for numbers within a factor of two."""
    return int(number).bit_length()


def evened(requests: Sequence[Request], group: Group) -> list[Group]:
    """The group, or parts of it of like size where what its longest member has beyond the prefix outweighs that."""
    own = {member: requests[member].size - group.shared for member in group.members}
    if max(own.values()) <= group.shared:
        return [group]
    parts: dict[int, list[int]] = {}
    for member, size in own.items():
        parts.setdefault(magnitude(size), []).append(member)
    return [Group(group.shared if len(part) > 1 else 0, part) for part in parts.values()]


def alike(requests: Sequence[Request], groups: Sequence[Group]) -> list[list[Group]]:
    """Groups for one cache each: of a size within a factor of two, those of single prompts as one group."""
    classes: dict[tuple[int, ...], list[Group]] = {}
    for group in itertools.chain.from_iterable(evened(requests, group) for group in groups):
        longest = max(requests[member].size - group.shared for member in group.members)
        if group.shared:
            key = (magnitude(group.shared), magnitude(len(group.members)), magnitude(longest))
            classes.setdefault(key, []).append(group)
        else:
            one = classes.setdefault((0, 0, magnitude(longest)), [Group(0, [])])[0]
            one.members.extend(group.members)
    longest_first = lambda member: (-requests[member].num_tokens, -len(requests[member].tokens), member)
    return [
        [Group(group.shared, sorted(group.members, key=longest_first)) for group in classes[key]]
        for key in sorted(classes, reverse=True)
    ]


def make_batch(
    model: "LVM",
    requests: Sequence[Request],
    groups: Sequence[Group],
    sampling: Sampling,
    cache_bytes: int,
    compile: bool,
    nll: "dict[int, Float32[np.ndarray, 'given t']]",
) -> "Batch":
    """A cache for these groups, as many cells as fit `cache_bytes`."""
    members = [(group, requests[member]) for group in groups for member in group.members]
    prefix = max(group.shared for group in groups)
    suffix = max(len(request.tokens) - group.shared for group, request in members)
    answer = max(request.num_tokens for _, request in members)
    candidates = len(members[0][1].keys)
    each = bytes_per_token(model.config, cache_dtype(model).itemsize)
    row = each * (suffix + candidates * (answer - 1))
    most = max(1, SCORES_AT_ONCE // (candidates * model.config.vocab_size))
    largest = max(len(group.members) for group in groups)
    rows = int(np.clip((cache_bytes - each * prefix) // max(row, 1), 1, min(largest, most)))
    slots = int(np.clip(cache_bytes // max(each * prefix + rows * row, 1), 1, min(len(groups), max(1, most // rows))))
    cache = Cache(model, slots, rows, candidates, prefix, suffix, max(1, answer - 1), compile)
    return Batch(cache, requests, sampling, answer, nll)


@dataclass
class Batch:
    """The cells of a cache and the requests they are at."""

    cache: Cache
    requests: Sequence[Request]
    sampling: Sampling
    answer: int  # codes of the longest answer
    nll: "dict[int, Float32[np.ndarray, 'given t']]"  # of what was given, by request
    at: list[int | None] = field(init=False)  # the request of each cell

    def __post_init__(self) -> None:
        cells, candidates = len(self.cache.fed), self.cache.candidates
        device = self.cache.suffix.device
        self.at = [None] * cells
        self.tokens = torch.zeros(cells, candidates, self.answer, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(cells, candidates, self.answer, dtype=torch.float32, device=device)
        self.keys = torch.zeros(cells, candidates, dtype=torch.int64, device=device)
        self.first_index, self.drawn = (torch.zeros(cells, dtype=torch.int64, device=device) for _ in range(2))
        self.num_drawn = [0] * cells
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def run(self, groups: Sequence[Group], statistics: Statistics) -> Iterator[Result]:
        waiting = deque(groups)
        queues: list[deque[int]] = [deque() for _ in self.cache.prefix_lengths]
        while True:
            for slot, queue in enumerate(queues):
                cells = range(slot * self.cache.rows, (slot + 1) * self.cache.rows)
                if not queue and waiting and all(self.at[cell] is None for cell in cells):
                    self._open(slot, group := waiting.popleft(), statistics)
                    queue.extend(group.members)
                free = [cell for cell in cells if self.at[cell] is None][: len(queue)]
                if free:
                    self._admit(slot, free, [queue.popleft() for _ in free], statistics)
            at_work = [cell for cell, request in enumerate(self.at) if request is not None]
            if not at_work:
                return
            self._advance(min(self._left(cell) for cell in at_work), at_work, statistics)
            for cell in at_work:
                if not self._left(cell):
                    yield self._take(cell)

    def _left(self, cell: int) -> int:
        number = self.at[cell]
        assert number is not None
        return self.requests[number].num_tokens - self.num_drawn[cell]

    def _open(self, slot: int, group: Group, statistics: Statistics) -> None:
        tokens = self.requests[group.members[0]].tokens[: group.shared]
        self.cache.feed_prefix(slot, torch.from_numpy(tokens).to(self.tokens.device))
        statistics.tokens_fed += group.shared

    def _admit(self, slot: int, cells: list[int], numbers: list[int], statistics: Statistics) -> None:
        """Feed what these requests have beside the slot's prefix, those of like length together."""
        parts: dict[int, list[tuple[int, int]]] = {}
        for cell, number in zip(cells, numbers):
            own = len(self.requests[number].tokens) - self.cache.prefix_lengths[slot]
            parts.setdefault(magnitude(own), []).append((cell, number))
        for part in parts.values():
            self._admit_alike(slot, [cell for cell, _ in part], [number for _, number in part], statistics)

    def _admit_alike(self, slot: int, cells: list[int], numbers: list[int], statistics: Statistics) -> None:
        """Feed them, padded to the longest, and draw the first code of each answer."""
        shared, requests = self.cache.prefix_lengths[slot], [self.requests[number] for number in numbers]
        lengths = [len(request.tokens) - shared for request in requests]
        padded = np.zeros((len(cells), max(lengths)), np.int64)
        for line, request, length in zip(padded, requests, lengths):
            line[:length] = request.tokens[shared:]
        device = self.tokens.device
        logits = self.cache.feed_rows(slot, cells, torch.from_numpy(padded).to(device), lengths)
        self._score_given(slot, cells, numbers, logits)
        where = torch.tensor(cells, device=device)
        self.keys[where] = signed(np.stack([request.keys for request in requests])).to(device)
        self.first_index[where] = torch.tensor([request.first_index for request in requests], device=device)
        logits = logits[:, None].expand(-1, self.cache.candidates, -1)
        config = self.cache.model.config
        codes, log_probs = draw(logits, config.num_codes, self.sampling, self.keys[where], self.first_index[where])
        self.tokens[where, :, 0], self.log_probs[where, :, 0], self.drawn[where] = codes, log_probs, 1
        for cell, number in zip(cells, numbers):
            self.at[cell], self.num_drawn[cell] = number, 1
        statistics.tokens_fed += sum(lengths)
        statistics.padding_fed += padded.size - sum(lengths)

    def _score_given(self, slot: int, cells: list[int], numbers: list[int], logits: "Float[Tensor, 'b v']") -> None:
        alike: dict[tuple[int, int], list[int]] = {}
        for place, number in enumerate(numbers):
            if given := self.requests[number].given:
                alike.setdefault((len(given), len(given[0])), []).append(place)
        for places in alike.values():
            tokens = torch.from_numpy(np.stack([np.stack(self.requests[numbers[place]].given) for place in places]))
            found = self.cache.nll_behind_rows(
                slot, [cells[place] for place in places], logits[places], tokens.to(self.tokens.device)
            )
            self.nll.update(zip([numbers[place] for place in places], found))

    def _advance(self, steps: int, at_work: list[int], statistics: Statistics) -> None:
        """So many codes more in every cell up to the last at work."""
        rows, cells = self.cache.rows, len(self.at)
        n = at_work[-1] + 1
        if self.cache.fixed:
            n = min(cells, 1 << (n - 1).bit_length())  # few graphs
        if cells > rows:
            n = -(-n // rows) * rows  # whole slots
        for _ in range(steps):
            self._step(n)
        for cell in range(n):
            self.num_drawn[cell] += steps
        statistics.steps += steps
        statistics.cells_stepped += steps * n
        statistics.cells_at_work += steps * len(at_work)

    def _step(self, n: int) -> None:
        if not self.cache.fixed:
            return self._draw_next(n)
        if n not in self._graphs:
            self._graphs[n] = self._capture(n)
        self._graphs[n].replay()
        self.cache.count_step(n)

    def _draw_next(self, n: int) -> None:
        """Feed the last codes of the first n cells and draw the next. On the device alone: no value is asked for."""
        index = torch.arange(n, device=self.tokens.device)
        drawn = self.drawn[:n]
        last = (drawn - 1).clamp(min=0, max=self.answer - 1)
        logits = self.cache.step(self.tokens[index, :, last])
        config = self.cache.model.config
        codes, log_probs = draw(logits, config.num_codes, self.sampling, self.keys[:n], self.first_index[:n] + drawn)
        place = drawn.clamp(max=self.answer - 1)  # cells that wait go round idle
        self.tokens[index, :, place], self.log_probs[index, :, place] = codes, log_probs
        self.drawn[:n] = drawn + 1

    def _capture(self, n: int) -> torch.cuda.CUDAGraph:
        """`_draw_next` as one graph. What running it to compile and to capture changes is put back."""
        kept = [self.tokens, self.log_probs, self.drawn, *self.cache.counters]
        before = [tensor.clone() for tensor in kept]
        on_host = list(self.cache.fed)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.tokens.device):  # streams are made on the current one
            aside = capturing_stream(self.tokens.device)
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    self._draw_next(n)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                self._draw_next(n)
        for tensor, value in zip(kept, before):
            tensor.copy_(value)
        self.cache.fed[:] = on_host
        return graph

    def _take(self, cell: int) -> Result:
        number = self.at[cell]
        assert number is not None
        self.at[cell] = None
        n = self.requests[number].num_tokens
        tokens, log_probs = (kept[cell, :, :n].to("cpu", copy=True).numpy() for kept in (self.tokens, self.log_probs))
        return number, tokens, log_probs
