"""Training learns, keeps its codebook alive and hears its judges; what cannot be trained is one clear line."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from small_training import flat_pictures, small

from lvm.runtime import UserError
from lvm.runtime.metrics import read_metrics
from tokenizer import VQGAN, TokenizerError
from tokenizer.adversarial import adaptive_weight, hinge_g
from tokenizer.evaluate import evaluate_tokenizer, ssim, usage_of
from tokenizer.losses import LossWeights, reconstruction_loss
from tokenizer.pictures import TrainingPictures
from tokenizer.quantizer import QuantizerConfig, kmeans, nearest, quantize
from tokenizer.settings import adversarial_weight, crop_of, micro_batches
from tokenizer.train import read_config, train
from tokenizer.training import Objective, autoencode, forward_loss, new_state, pixel_loss, pixels_of

CPU = torch.device("cpu")


def quiet(line: str) -> None:
    pass


def test_training_learns_and_writes_a_loadable_tokenizer_and_a_sheet(tmp_path):
    vq = train(small(), tmp_path, flat_pictures(), quiet, CPU).tokenizer
    lines = read_metrics(tmp_path / "metrics")
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["code_usage"] > 0.5 and lines[-1]["dead_codes"] < 8 and "held_out_psnr" in lines[-1]
    assert (tmp_path / "sheet.png").stat().st_size > 0
    assert VQGAN.from_pretrained(tmp_path / "tokenizer").fingerprint == vq.fingerprint
    norms = vq.quantize.embedding.weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("kind", ["ema", "ibq"])
def test_every_quantizer_trains(tmp_path, kind):
    train(small(quantizer={"kind": kind}, steps=60), tmp_path, flat_pictures(), quiet, CPU)
    lines = read_metrics(tmp_path / "metrics")
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["code_usage"] > 0.3


def test_judges_are_heard_and_the_discriminator_learns(tmp_path):
    config = small(
        steps=60, loss={"adversarial": 0.5, "perceptual": 0.2}, discriminator={"learning_rate": 1e-2}, flip=True
    )
    train(config, tmp_path, flat_pictures(), quiet, CPU)
    first, *_, last = [line for line in read_metrics(tmp_path / "metrics") if "discriminator_loss" in line]
    assert last["discriminator_loss"] < first["discriminator_loss"] and last["logits_real"] > last["logits_fake"]
    assert "perceptual" in last and last["psnr"] > first["psnr"] - 1


def judged(adversarial: float | None, **changes):
    """(gradients of the net, figures, state, pictures) of one batch with a discriminator."""
    config = small(loss={"adversarial": 0.5, "perceptual": 0.0}, **changes)
    state = new_state(config, CPU)
    objective = Objective(config, state, CPU, compiled=False)
    objective.bf16 = False
    pictures = torch.from_numpy(flat_pictures().train[:4])
    figures, _, _ = objective.backward(pictures, torch.tensor(1.0), 1.0, adversarial)
    return {name: p.grad for name, p in state.model.named_parameters()}, figures, state, pictures, config


def test_without_weight_the_judged_step_has_the_gradient_of_the_plain_one():
    ours, figures, state, pictures, config = judged(None)
    state.model.zero_grad()
    loss, _, _, _ = forward_loss(state.model, pictures, torch.tensor(1.0), config)
    loss.backward()
    torch.testing.assert_close(figures["loss"], loss.detach())
    for name, p in state.model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_the_adversarial_gradient_is_that_of_the_whole_graph():
    """One backward through the net, weighed at the reconstruction, is autograd through everything."""
    ours, figures, state, pictures, config = judged(0.3)
    assert all(p.grad is not None for p in state.discriminator.parameters())
    state.model.zero_grad()
    pixels = pixels_of(pictures)
    made, _, codebook_loss, _, _ = autoencode(state.model, pixels, torch.tensor(1.0), config)
    nll, _, _ = pixel_loss(made, pixels, config.loss, None)
    g = hinge_g(state.discriminator(made))
    weight = adaptive_weight(nll, g, state.model.decoder.conv_out.weight, config.discriminator.max_weight)
    torch.testing.assert_close(figures["adaptive_weight"], weight, rtol=1e-3, atol=1e-6)
    (nll + codebook_loss + 0.3 * weight * g).backward()
    for name, p in state.model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_the_adaptive_weight_is_bounded():
    _, figures, *_ = judged(0.3, discriminator={"max_weight": 1e-3})
    assert figures["adaptive_weight"] == pytest.approx(1e-3)


def test_the_discriminator_starts_late_and_is_heard_more_and_more():
    config = small(loss={"adversarial": 0.5}, discriminator={"start_step": 100, "ramp_steps": 10})
    assert adversarial_weight(config, 99) is None and adversarial_weight(config, 100) == 0.0
    assert adversarial_weight(config, 105) == 0.25 and adversarial_weight(config, 1000) == 0.5
    assert adversarial_weight(small(), 1000) is None


def test_micro_batches_make_the_step_of_one_batch(tmp_path):
    pictures, gradients = flat_pictures(), []
    for num_micro in (1, 4):
        config = small(loss={"adversarial": 0.0, "perceptual": 0.1})
        state = new_state(config, CPU)
        objective = Objective(config, state, CPU, compiled=False)
        objective.bf16 = False
        for number in range(num_micro):
            batch = torch.from_numpy(pictures.batch(0, 5, 8, (number, num_micro)))
            objective.backward(batch, torch.tensor(1.0), 1 / num_micro, None)
        gradients.append([p.grad for p in state.model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    train(small(accumulate=4, steps=4), tmp_path, pictures, quiet, CPU)


class Watched(TrainingPictures):
    sides: list

    def batch(self, *arguments):
        pictures = super().batch(*arguments)
        self.sides.append(pictures.shape[:3])
        return pictures


def test_crops_are_trained_on_and_whole_pictures_at_the_end(tmp_path):
    pictures = Watched(flat_pictures().train, flat_pictures().held_out)
    object.__setattr__(pictures, "sides", [])
    config = small(steps=10, crop=8, full_size_share=0.2, quantizer={"continuous_steps": 100})
    train(config, tmp_path, pictures, quiet, CPU)
    # Four times the pixels, four times the micro-batches; each phase draws one batch too many, ahead.
    assert pictures.sides == [(8, 8, 8)] * 9 + [(2, 16, 16)] * 9
    assert crop_of(small(crop=None), 0.1) is None and micro_batches(small(), 2, None) == 1


def test_a_run_starts_from_another_tokenizers_weights(tmp_path):
    source = VQGAN(small().model)
    source.save_pretrained(tmp_path / "source")
    config = small(
        init_from=str(tmp_path / "source"), steps=2, learning_rate=0.0, quantizer={"normalize": False}, usage_floor=0.0
    )
    assert train(config, tmp_path / "run", flat_pictures(), quiet, CPU).tokenizer.fingerprint == source.fingerprint
    (tmp_path / "tune.yaml").write_text(f"init_from: {tmp_path / 'source'}\n")
    arguments = [f"experiment={tmp_path / 'tune.yaml'}", "out=x"]
    assert read_config(arguments)[0].model == source.config
    assert read_config([*arguments, "model.resolution=32"])[0].model.code_grid == (16, 16)
    wide = VQGAN(dataclasses.replace(source.config, grid=(4, 16)))
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(TokenizerError, match=r"model\.grid is 4 x 16, but .* fill 8 x 8; use model\.grid=null"):
        read_config([*arguments, f"init_from={tmp_path / 'wide'}"])
    assert read_config([*arguments, f"init_from={tmp_path / 'wide'}", "model.grid=null"])[0].model.code_grid == (8, 8)
    with pytest.raises(UserError, match=r"model\.num_embeddings is 9, .* 16"):
        read_config([*arguments, "model.num_embeddings=9"])


def test_another_configuration_or_other_pictures_in_the_same_folder_are_refused(tmp_path):
    config = small(steps=2)
    train(config, tmp_path, flat_pictures(), quiet, CPU)
    with pytest.raises(UserError, match=r"learning_rate = 0\.003, not 0\.5"):
        train(dataclasses.replace(config, learning_rate=0.5), tmp_path, flat_pictures(), quiet, CPU)
    with pytest.raises(UserError, match="other pictures"):
        train(config, tmp_path, flat_pictures(128), quiet, CPU)
    train(dataclasses.replace(config, log_every_steps=1), tmp_path, flat_pictures(), quiet, CPU)
    state = tmp_path / "checkpoints" / "step-00000002" / "state.json"
    state.write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint that is whole: .*state\.json.*; .*remove all step-"):
        train(config, tmp_path, flat_pictures(), quiet, CPU)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    from lvm.runtime.checkpoint import CheckpointWriter

    writer = CheckpointWriter(tmp_path / "checkpoints")
    writer.save(3, {"a": torch.zeros(2)}, {"train": {}}, {})
    writer.wait()
    with pytest.raises(UserError, match="not of a tokenizer's training"):
        train(small(), tmp_path, flat_pictures(), quiet, CPU)


def test_a_collapsed_codebook_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="codebook collapsed"):
        train(small(usage_floor=1.01, usage_floor_after_steps=10), tmp_path, flat_pictures(), quiet, CPU)


def test_numbers_that_are_not_finite_end_the_run_and_are_never_saved(tmp_path):
    config = small(learning_rate=1e30, warmup_steps=0, steps=40, save_every_minutes=0)
    with pytest.raises(UserError, match="not finite before step 10"):
        train(config, tmp_path, flat_pictures(), quiet, CPU)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_a_run_without_held_out_pictures_says_so_and_how_to_get_some(tmp_path):
    said = []
    pictures = TrainingPictures(flat_pictures().train, flat_pictures().held_out[:0])
    train(small(steps=20, log_every_steps=20), tmp_path, pictures, said.append, CPU)
    assert said[0] == (
        "no picture is held out of 56: no sheet.png and no held-out PSNR; "
        "give more pictures or a larger held_out_per_mille than 20"
    )
    assert not (tmp_path / "sheet.png").exists() and (tmp_path / "tokenizer").is_dir()
    train(small(steps=2), tmp_path / "usual", flat_pictures(), said.append, CPU)
    assert sum("held out of" in line for line in said) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepps=3", "unknown config key 'stepps'"),
        ("crop=20", r"crop 20 must divide by 8.*use 16"),
        ("crop=96", "at most 48; use 48"),
        ("model.resolution=50", "resolution 50 does not divide by 8"),
        ("batch_size=0", "batch_size is 0"),
        ("full_size_share=2", "full_size_share is 2"),
        ("init_from=nothing", "nothing is neither a folder"),
        (
            "model.grid=[4,9]",
            r"model\.grid is 4 x 9, but pictures are .* squares of .* 48, which fill 6 x 6; use model.grid=null",
        ),
        ("model.grid=[5,5]", r"model\.grid is 5 x 5, but pictures are read as squares"),
        ("model.grid=[0,6]", r"grid is \[0, 6\]"),
    ],
)
def test_a_mistake_is_one_clear_line(override, message):
    with pytest.raises((UserError, TokenizerError), match=message):
        read_config(["experiment=world_48", "out=x", override])


def test_unknown_files_and_batches_that_do_not_divide_are_one_clear_line():
    with pytest.raises(UserError, match="known are"):
        read_config(["experiment=wrld", "out=x"])
    with pytest.raises(TokenizerError, match=r"batch_size 8 is no multiple of 3 ranks x 1 .* use 9"):
        micro_batches(small(), 3, None)
    with pytest.raises(TokenizerError, match="takes pictures of 24 pixels and more, not 16"):
        small(loss={"adversarial": 0.5}, discriminator={"num_layers": 3})
    config, _ = read_config(["experiment=world_48", "out=x", "loss.l2=3", "compile=false", "pictures=[a,b.npy]"])
    assert config.loss.l2 == 3.0 and config.compile is False and config.pictures == ("a", "b.npy")


def test_the_straight_through_gradient_passes_and_beta_pulls_the_encoder():
    z, codebook = torch.randn(6, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    chosen, codes, loss = quantize(z, codebook, 0.25, QuantizerConfig(normalize=False))
    assert torch.equal(codes, torch.cdist(z, codebook).argmin(1))
    torch.testing.assert_close(chosen, codebook[codes])
    (gradient,) = torch.autograd.grad(chosen.sum(), z, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(gradient))
    of_z, of_codes = torch.autograd.grad(loss, (z, codebook))
    torch.testing.assert_close(of_z.sum(0), -0.25 * of_codes.sum(0))


def test_codes_of_length_one_are_found_without_normalising_the_latent():
    z, codebook = torch.randn(50, 8) * 5, torch.nn.functional.normalize(torch.randn(16, 8), dim=1)
    assert torch.equal(nearest(z, codebook), quantize(z, codebook, 0.25, QuantizerConfig())[1])


def test_kmeans_finds_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat(40, 1) + 0.1 * torch.randn(120, 2, generator=generator)
    found = kmeans(points, 3, False, generator)
    assert torch.cdist(centres, found).min(1).values.max() < 1.0


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
    scores = evaluate_tokenizer(VQGAN(small().model), flat_pictures().held_out)
    assert scores.keys() >= {"psnr", "ssim", "code_usage", "code_perplexity", "pictures"} and scores["pictures"] == 8
    assert json.dumps(scores)


@pytest.mark.slow
def test_compiled_gradients_equal_eager_ones_in_bfloat16():
    """Compiled F.interpolate once gave every level but the last a gradient of zero, and a net that hardly learned."""
    from lvm.runtime.machine import compile_problem

    if compile_problem() is not None:
        pytest.skip(str(compile_problem()))
    config = small()
    model = new_state(config, CPU).model
    batch = torch.from_numpy(flat_pictures().train[:4])

    def gradients(function):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            function(model, batch, torch.tensor(0.0), config)[0].backward()
        return [p.grad for name, p in model.named_parameters() if name.startswith(("encoder.", "decoder."))]

    eager = gradients(forward_loss)
    for ours, theirs in zip(gradients(torch.compile(forward_loss, dynamic=False)), eager):
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9
