"""The prompts of a training run: held-out sentences whose last picture the model paints, as a sheet of pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvm.commands._strips import Cell, Row, codes_of, decode, sheet
from lvm.data import TokenPlan
from lvm.inference import generate
from lvm.inference.rollout import move_window
from lvm.model import LVM
from lvm.runtime import UserError, atomic_path
from tokenizer import VQGAN

SENTENCES = 2  # of each entry


class HeldOutAnswers:
    """`answer(model, step)` of a training: a sheet in `folder` (prompt | truth | answer), and the share of right codes.

    The prompts are sentence 0, 1, ... of each entry of `plan`, all their pictures but the last; entries of single
    pictures have none. Answers are greedy.
    """

    def __init__(self, plan: TokenPlan, vqgan: VQGAN, folder: Path, room: int):
        """`room`: pictures that fit the model's context, the answer included; of longer sentences the end is shown."""
        self._vqgan, self._folder = vqgan, folder
        self._titles: list[str] = []
        self._names: list[list[str]] = []
        self._codes: list[np.ndarray] = []  # of each sentence [pictures, t]
        self._grid = next(iter(plan.stores.values())).grid
        for number in range(SENTENCES):
            for sentence in plan.samples(number):
                pictures = sentence["pictures"]
                # Two at a time, so that inputs and answers of pairs keep their places.
                pictures = pictures[move_window(len(pictures), room, 2) :]
                if len(pictures) > 1:
                    self._titles.append(f"{sentence['entry']} ({sentence['recipe']}): {pictures[-1]['id']}")
                    self._names.append([picture["channel"] for picture in pictures])
                    self._codes.append(codes_of(plan, {**sentence, "pictures": pictures}))
        if not self._codes:
            raise UserError("no held-out sentence of two pictures fits the context; use trainer.answer_every_steps=0")
        self._drawn: list[np.ndarray] = []

    def __call__(self, model: LVM, step: int) -> dict[str, Any]:
        prompts = [torch.from_numpy(codes[:-1].reshape(-1).astype(np.int64)) for codes in self._codes]
        truth = np.stack([codes[-1] for codes in self._codes])
        answers = generate(model, prompts, truth.shape[1], temperature=0.0).tokens[:, 0].cpu().numpy()
        path = self._folder / f"step-{step:08d}.png"
        with atomic_path(path) as aside:
            sheet(self._rows(answers)).save(aside, format="PNG")
        return {"answers": path, "answers_right": float((answers == truth).mean())}

    def _rows(self, answers: "np.ndarray") -> list[Row]:
        self._drawn = self._drawn or [decode(self._vqgan, codes, self._grid) for codes in self._codes]
        painted = decode(self._vqgan, answers.astype(np.uint16), self._grid)
        rows = []
        for title, names, shown, answer in zip(self._titles, self._names, self._drawn, painted):
            cells = [Cell(name, picture) for name, picture in zip(names[:-1], shown[:-1])]
            rows.append(
                Row(title, [*cells, Cell(f"truth: {names[-1]}", shown[-1]), Cell("answer", answer, answer=True)])
            )
        return rows
