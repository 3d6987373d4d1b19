"""For every test: no cluster, account or cache of this machine's user reaches it, and slow machines are no failure."""

import os

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """Stores of the world in a folder of this session, wandb offline, no launcher's variables."""
    with pytest.MonkeyPatch.context() as patch:
        for key in os.environ:
            if key.startswith(("SLURM_", "SBATCH_")) or key in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "WANDB_API_KEY"):
                patch.delenv(key)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("LVM_CACHE", str(tmp_path_factory.mktemp("lvm-cache")))
        yield
