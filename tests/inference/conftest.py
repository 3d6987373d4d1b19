"""A model, a tokenizer and pictures for `lvm generate`, and one thread."""

import pytest
import torch
from PIL import Image
from tiny_prompter import pictures, small_model, small_vqgan


@pytest.fixture(scope="module")
def one_thread():
    """Here and in processes started here: bytes are equal for equal numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a tokenizer and pictures a0..a6.png on disk."""
    folder, vq = tmp_path_factory.mktemp("prompting"), small_vqgan()
    small_model(vq).save_pretrained(folder / "model")
    vq.save_pretrained(folder / "tokenizer")
    for number, picture in enumerate(pictures(7, 32)):
        Image.fromarray(picture).save(folder / f"a{number}.png")
    return folder
