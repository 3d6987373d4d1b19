"""A run of seconds by the command, for the tests of commands."""

import pytest
from tiny_runs import tiny_run, tiny_tokenizer


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Overrides of a run of seconds, its folder among them; the folder."""
    folder = tmp_path_factory.mktemp("train")
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVM_CACHE", str(folder / "cache"))
        for key in ("SLURM_JOB_ID", "SLURM_NTASKS", "WORLD_SIZE", "RANK"):
            patch.delenv(key, raising=False)
        yield [*tiny_run(tokenizer), f"run_dir={folder / 'run'}"], folder / "run"
