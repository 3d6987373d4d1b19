"""Training learns, keeps its codebook alive, and goes on where it stopped; the scores are the known ones."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lvm.runtime import UserError
from tokenizer import VQGAN, VQGANConfig
from tokenizer.evaluate import TrainingPictures, evaluate_tokenizer, read_pictures, ssim, usage_of
from tokenizer.losses import LossWeights, reconstruction_loss
from tokenizer.quantizer import kmeans, nearest, quantize_for_training, restart_dead_codes
from tokenizer.train import TrainConfig, read_config, train

SMALL = TrainConfig(
    model=VQGANConfig(
        hidden_channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=4, quantized_embed_dim=4,
        num_embeddings=16, resolution=16, norm_groups=2,
    ),
    steps=150, batch_size=8, continuous_steps=10, warmup_steps=5, restart_every_steps=10, log_every_steps=10,
    learning_rate=3e-3, compile=False, ema_decay=0.9, save_dtype="float32", threads=1,
)  # fmt: skip


def flat_pictures(n: int = 64) -> TrainingPictures:
    """Eight pictures of four random colours, again and again; the last eight are held out."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 3), dtype=np.uint8)
    pictures = np.tile(colours.repeat(8, axis=1).repeat(8, axis=2), (n // 8, 1, 1, 1))
    return TrainingPictures(pictures[:-8], pictures[-8:])


def quiet(line: str) -> None:
    pass


def test_training_learns_and_writes_a_loadable_tokenizer_and_a_sheet(tmp_path):
    vq = train(SMALL, tmp_path, flat_pictures(), quiet)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert lines[-2]["code_usage"] > 0.5 and "held_out_psnr" in lines[-1]
    assert (tmp_path / "sheet.png").stat().st_size > 0
    assert VQGAN.from_pretrained(tmp_path / "tokenizer").fingerprint == vq.fingerprint
    norms = vq.quantize.embedding.weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    import tokenizer.train as module

    real, calls = module.update_average, []

    def stop_at_25(state, config):
        real(state, config)
        calls.append(None)
        if len(calls) == 25:
            state.step += 1
            module.save_checkpoint(state, tmp_path / "parts" / "checkpoint.safetensors")
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "update_average", stop_at_25)
    config = dataclasses.replace(SMALL, restart_every_steps=1000)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", flat_pictures(), quiet)
    monkeypatch.setattr(module, "update_average", real)
    parts = train(config, tmp_path / "parts", flat_pictures(), quiet)
    whole = train(config, tmp_path / "again", flat_pictures(), quiet)
    assert parts.fingerprint == whole.fingerprint


def test_another_configuration_in_the_same_folder_is_refused(tmp_path):
    config = dataclasses.replace(SMALL, steps=2)
    train(config, tmp_path, flat_pictures(), quiet)
    with pytest.raises(UserError, match=r"learning_rate = 0\.003, not 0\.5"):
        train(dataclasses.replace(config, learning_rate=0.5), tmp_path, flat_pictures(), quiet)


def test_a_collapsed_codebook_stops_the_run(tmp_path):
    config = dataclasses.replace(SMALL, usage_floor=1.01, usage_floor_after_steps=10)
    with pytest.raises(UserError, match="codebook collapsed"):
        train(config, tmp_path, flat_pictures(), quiet)


def test_unknown_keys_and_files_are_one_clear_line():
    with pytest.raises(UserError, match="unknown config key 'stepps'"):
        read_config(["experiment=world_48", "out=x", "stepps=3"])
    with pytest.raises(UserError, match="known are"):
        read_config(["experiment=wrld", "out=x"])
    config, _ = read_config(["experiment=world_48", "out=x", "loss.l2=3", "compile=false"])
    assert config.loss.l2 == 3.0 and config.compile is False and config.model.resolution == 48


def test_an_array_of_another_size_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"\[4, 8, 8, 3\]"):
        read_pictures(str(tmp_path / "a.npy"), 16, 100)


def test_the_straight_through_gradient_passes_and_beta_pulls_the_encoder():
    z, codebook = torch.randn(6, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    chosen, codes, loss = quantize_for_training(z, codebook, 0.25, False)
    assert torch.equal(codes, torch.cdist(z, codebook).argmin(1))
    torch.testing.assert_close(chosen, codebook[codes])
    (gradient,) = torch.autograd.grad(chosen.sum(), z, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(gradient))
    of_z, of_codes = torch.autograd.grad(loss, (z, codebook))
    torch.testing.assert_close(of_z.sum(0), -0.25 * of_codes.sum(0))


def test_codes_of_length_one_are_found_without_normalising_the_latent():
    z, codebook = torch.randn(50, 8) * 5, torch.nn.functional.normalize(torch.randn(16, 8), dim=1)
    assert torch.equal(nearest(z, codebook), quantize_for_training(z, codebook, 0.25, True)[1])


def test_kmeans_finds_separate_clusters_and_dead_codes_move():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat(40, 1) + 0.1 * torch.randn(120, 2, generator=generator)
    found = kmeans(points, 3, False, generator)
    assert torch.cdist(centres, found).min(1).values.max() < 1.0
    codebook, counts = torch.full((4, 2), 99.0), torch.tensor([5, 0, 7, 0])
    moved = restart_dead_codes(codebook, counts, points, False, generator)
    assert moved.tolist() == [1, 3] and (codebook[[0, 2]] == 99).all() and (codebook[[1, 3]] < 50).all()


def test_a_missing_thin_line_costs_more_than_the_same_error_spread_out():
    line = torch.zeros(1, 3, 16, 16)
    line[:, :, :, 8] = 1.0
    gray = torch.full_like(line, 1 / 16)
    missing, _ = reconstruction_loss(torch.zeros_like(line), line, LossWeights())
    spread, _ = reconstruction_loss(gray, torch.zeros_like(line), LossWeights())
    assert missing > 2 * spread
    assert reconstruction_loss(line, line, LossWeights())[0] == 0


def test_scores_of_known_cases():
    a = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ssim(a, a), torch.ones(2))
    assert (ssim(a, 1 - a) < 0).all()
    assert usage_of(np.array([3, 3, 0, 0])) == (0.5, pytest.approx(2.0))
    scores = evaluate_tokenizer(VQGAN(SMALL.model), flat_pictures().held_out)
    assert scores.keys() == {"psnr", "ssim", "code_usage", "code_perplexity", "pictures"} and scores["pictures"] == 8


@pytest.mark.slow
def test_compiled_gradients_equal_eager_ones_in_bfloat16():
    """Compiled F.interpolate once gave every level but the last a gradient of zero, and a net that hardly learned."""
    from lvm.runtime.machine import compile_problem
    from tokenizer.train import forward_loss, new_state

    if compile_problem() is not None:
        pytest.skip(str(compile_problem()))
    model = new_state(SMALL, torch.device("cpu")).model
    batch = torch.from_numpy(flat_pictures().train[:4])

    def gradients(function):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            function(model, batch, torch.tensor(0.0), SMALL)[0].backward()
        return [p.grad for name, p in model.named_parameters() if name.startswith(("encoder.", "decoder."))]

    eager = gradients(forward_loss)
    for ours, theirs in zip(gradients(torch.compile(forward_loss, dynamic=False)), eager):
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9
