"""A command of lvm in which one window has no finite loss: python faulty.py WINDOW train|replay ARGUMENTS"""

import math
import sys

import torch

import lvm.commands.replay
import lvm.commands.train
import lvm.data
import lvm.training.loop
import lvm.training.replay

WINDOW = int(sys.argv[1])
MARK = 50  # a spare id beyond the codes, which stands in that window alone
MARKED: list[int] = []


def open_plan(config):
    plan = lvm.data.open_plan(config)
    MARKED.append(plan.num_codes + MARK)
    windows = plan.windows

    def marked(i, n):
        found = windows(i, n)
        if i <= WINDOW < i + n:
            found.tokens[WINDOW - i, 3] = MARKED[0]
        return found

    plan.windows = marked
    return plan


def poisoned(make):
    def made(*arguments, **options):
        loss_of = make(*arguments, **options)

        def loss(tokens, role, targets):
            value, nll = loss_of(tokens, role, targets)
            hit = (tokens == MARKED[0]).any(1)
            return value * torch.where(hit.any(), math.nan, 1.0), torch.where(hit[:, None], math.nan, nll)

        return loss

    return made


if __name__ == "__main__":
    lvm.commands.train.open_plan = lvm.commands.replay.open_plan = open_plan
    lvm.training.loop.loss_on_mesh = poisoned(lvm.training.loop.loss_on_mesh)
    lvm.training.replay.make_loss = poisoned(lvm.training.replay.make_loss)
    verb = {"train": lvm.commands.train, "replay": lvm.commands.replay}[sys.argv[2]]
    lvm.runtime.exit_with_one_line(lambda: verb.main(sys.argv[3:]))
