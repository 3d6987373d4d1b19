"""Run the whole path: pictures -> codes -> training -> prompted answers -> a report to look at.

lvm demo                        on the embedded world: runs/demo/report.html
lvm demo --seed 1               on another world
lvm demo --pictures DIR         on your own pictures, with sibling folders of annotations or frames if there are any
"""

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lvm demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="changes the whole world, the order and the weights' start")
    parser.add_argument("--pictures", metavar="DIR", help="a folder of JPEG or PNG pictures instead of the world")
    parser.add_argument("--out", metavar="DIR", help="default runs/demo, with seed or folder appended")
    parser.add_argument("--tokenizer", metavar="NAME_OR_PATH", help="default: the shipped one, for world or photos")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of train.py, e.g. trainer.max_steps=500")
    arguments = parser.parse_args(argv)

    from lvm.demo import run_demo

    return run_demo(
        seed=arguments.seed,
        pictures=Path(arguments.pictures) if arguments.pictures else None,
        out=Path(arguments.out) if arguments.out else None,
        tokenizer=arguments.tokenizer,
        overrides=tuple(arguments.overrides),
    )
