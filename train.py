"""Train an LVM: python train.py experiment=debug run_dir=runs/debug trainer.max_steps=20

The overrides are Hydra's, over configs/train.yaml. The same command again continues the run. `lvm train` is the same;
what happens is in lvm/commands/train.py, and the loop in lvm/training/loop.py.
"""

import sys

from lvm.runtime import exit_with_one_line
from lvm.runtime.memory import keep_freed_memory


def main() -> int:
    keep_freed_memory()
    from lvm.commands.train import main  # seconds of imports: Ctrl-C in them is one line too

    return main(sys.argv[1:])


if __name__ == "__main__":
    exit_with_one_line(main)
