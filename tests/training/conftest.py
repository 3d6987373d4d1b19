"""A run of seconds by the command, for the tests of commands."""

import pytest
import torch

from tokenizer import VQGAN, VQGANConfig


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Overrides of a run of seconds: a random tokenizer of 4 tokens a picture, 30 scenes; the run folder."""
    folder = tmp_path_factory.mktemp("train")
    config = VQGANConfig(
        hidden_channels=8,
        channel_mult=(1, 1, 1, 1),
        num_res_blocks=1,
        z_channels=4,
        quantized_embed_dim=4,
        num_embeddings=32,
        resolution=16,
        norm_groups=2,
    )
    torch.manual_seed(4)  # of a random net most draws give nearly all pictures the same codes
    VQGAN(config).save_pretrained(folder / "tokenizer")
    model = ["model.num_codes=32", "model.tokens_per_picture=4", "model.hidden_size=32", "model.intermediate_size=48"]
    data = ["world.num_scenes=120", "world.num_clips=12", "data.seq_len=16", "data.period=32"]
    run = [f"run_dir={folder / 'run'}", f"tokenizer={folder / 'tokenizer'}", "trainer.num_threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVM_CACHE", str(folder / "cache"))
        for key in ("SLURM_JOB_ID", "SLURM_NTASKS", "WORLD_SIZE", "RANK"):
            patch.delenv(key, raising=False)
        yield ["experiment=debug", *run, *model, *data], folder / "run"
