"""One member of a sweep inside a job of Hydra's submitit launcher; started by `lvm sweep run ... launcher=slurm`.

    python -m lvm.commands._sweep_member --multirun hydra/launcher=submitit_slurm members=FILE member=0,1,2

Every rank of the job runs it. It only trains: stopping, saving and going on are those of any run of train.py.
"""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from lvm.commands import train
from lvm.runtime import read_json
from lvm.runtime.errors import exit_code_of

ConfigStore.instance().store("member", {"members": "???", "member": 0})


def speak_into(folder: Path) -> None:
    """What this rank prints goes to its log, after what earlier attempts wrote."""
    log = os.open(folder / f"rank-{os.environ.get('SLURM_PROCID', '0')}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)


@hydra.main(version_base="1.3", config_path=None, config_name="member")
def main(config: Any) -> None:
    job = read_json(config.members)[config.member]
    speak_into(Path(job["log"]))
    GlobalHydra.instance().clear()  # train composes a config of its own
    try:
        if code := exit_code_of(lambda: train.main(job["overrides"])):
            sys.exit(code)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
