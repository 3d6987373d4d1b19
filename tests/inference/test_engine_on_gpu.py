"""The engine on a GPU: compiled, a step captured as one graph, the answers of the plain computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lvm.inference import generate
from lvm.inference.engine import Batch, Request, answer_requests
from lvm.inference.sampling import GREEDY, Sampling, gumbel, signed
from lvm.model import LVM, LVMConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

CONFIG = LVMConfig(
    num_codes=200, hidden_size=256, intermediate_size=512, num_layers=2, num_heads=4, num_kv_heads=2, max_position=600
)


def model(device: str = "cuda", dtype: torch.dtype = torch.float32) -> LVM:
    net = LVM(CONFIG, seed=3)
    for parameter in net.parameters():
        parameter.data.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return net.to(device=device, dtype=dtype).eval()


def requests(shared: int, number: int = 9, candidates: int = 3) -> list[Request]:
    generator = np.random.default_rng(shared)
    pairs = generator.integers(0, 200, shared)
    return [
        Request(
            np.concatenate([[200], pairs, generator.integers(0, 200, 20 + 7 * n)]),
            np.arange(candidates, dtype=np.uint64) + np.uint64(100 * n),
            num_tokens=6 + 5 * (n % 4),
        )
        for n in range(number)
    ]


def answers(net: LVM, asked: list[Request], sampling: Sampling, **options) -> dict[int, np.ndarray]:
    return {n: (tokens, log_probs) for n, tokens, log_probs in answer_requests(net, asked, sampling, **options)}


def assert_equal_but_for_ties(asked: list[Request], there: dict, here: dict, sampling: Sampling) -> None:
    """Where codes first differ, the scores that decided are as good as equal."""
    net = model("cpu")
    for n, request in enumerate(asked):
        for candidate, (theirs, ours) in enumerate(zip(there[n][0], here[n][0])):
            differ = np.flatnonzero(theirs != ours)
            count = int(differ[0]) if len(differ) else len(ours)
            np.testing.assert_allclose(there[n][1][candidate, :count], here[n][1][candidate, :count], atol=1e-3)
            if not len(differ):
                continue
            fed = torch.from_numpy(np.concatenate([request.tokens, ours[:count]]))[None]
            with torch.no_grad():
                scores = net(fed)[0, -1, : CONFIG.num_codes]
            if sampling.temperature:
                keys = signed(request.keys[candidate : candidate + 1])[None]
                scores = scores / sampling.temperature + gumbel(keys, torch.tensor([count]), CONFIG.num_codes)[0, 0]
            assert abs(float(scores[theirs[count]] - scores[ours[count]])) < 5e-3


@pytest.mark.parametrize("shared", [0, 300])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8)])
@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_answers_are_those_of_the_cpu(shared, sampling, device):
    if int(device[-1]) >= torch.cuda.device_count():
        pytest.skip("one GPU here")
    torch.backends.cuda.matmul.allow_tf32 = False
    asked = requests(shared)
    assert_equal_but_for_ties(
        asked, answers(model(device), asked, sampling), answers(model("cpu"), asked, sampling), sampling
    )


def test_groups_side_by_side():
    torch.backends.cuda.matmul.allow_tf32 = False
    asked = [request for shared in (200, 210, 220) for request in requests(shared, number=3)]
    assert_equal_but_for_ties(asked, answers(model(), asked, GREEDY), answers(model("cpu"), asked, GREEDY), GREEDY)


def test_the_captured_step_is_the_step(monkeypatch):
    asked, net = requests(300), model(dtype=torch.bfloat16)
    captured = {n: tokens for n, tokens, _ in answer_requests(net, asked, GREEDY, compile=False)}
    monkeypatch.setattr(Batch, "_step", Batch._draw_next)
    plain = {n: tokens for n, tokens, _ in answer_requests(net, asked, GREEDY, compile=False)}
    assert all(np.array_equal(captured[n], plain[n]) for n in plain)


def test_a_step_waits_for_nothing(monkeypatch):
    net = LVM(replace(CONFIG, num_codes=8192, vocab_size=0), seed=3).to("cuda", torch.bfloat16).eval()
    prompt = torch.randint(200, (2, 100), device="cuda")
    sampling = {"temperature": 0.9, "top_k": 50, "top_p": 0.95}
    generate(net, prompt, 30, **sampling)  # captured
    monkeypatch.setattr(Batch, "_step", Batch._draw_next)
    step = Batch._draw_next

    def strict(self, n):
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(self, n)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Batch, "_step", strict)
    assert generate(net, prompt, 30, **sampling).tokens.shape == (2, 1, 30)
