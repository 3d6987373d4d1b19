"""`lvm generate --protocol reference`: the published batch generation, step by step."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_prompter import TOKENS, command, write_lines

from lvm import Prompter
from lvm.runtime import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reference(folder):
    """Its list: prompts of 3, 5 and 7 pictures, of which the context holds 5 and the answer."""
    rows = [
        {"input": [f"a{n}.png" for n in range(length)], "output": f"sub/{length}.png", "target": ["a0.png", "a1.png"]}
        for length in (3, 5, 7)
    ]
    return write_lines(folder / "reference.jsonl", rows)


def reference_generate(model_folder, codes, num_pictures, context):
    """The loop of its `generate_once`, with transformers, where one code can be drawn."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_folder).eval()
    t = TOKENS
    ids = torch.from_numpy(codes).reshape(1, -1)[:, -(context - 1) * t :]
    new: list[torch.Tensor] = []
    while len(new) < num_pictures:
        ids = ids[:, -(context - 1) * t :]
        now = min(context - ids.shape[1] // t, num_pictures) if not new else 1
        ids = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=32, max_new_tokens=t * now,
            do_sample=True, top_k=1, suppress_tokens=list(range(32, model.vocab_size)), bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip
        new += ids[:, -t * now :].reshape(now, t).unbind()
    return torch.stack(new).numpy()


def test_greedy_answers_are_those_of_the_reference(folder, reference, tmp_path):
    out = tmp_path / "out"
    words = ["--protocol", "reference", "--prompts", str(reference), "--num-pictures", "3", "--top-k", "1"]
    assert command(folder, *words, "--include-input", "--out", str(out)) == 0
    prompter = Prompter.from_pretrained(folder / "model", folder / "tokenizer")
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    for line, length in zip(lines, (3, 5, 7)):
        codes = prompter.encode(prompter.pixels([folder / f"a{n}.png" for n in range(length)]))
        expected = reference_generate(folder / "model", codes, 3, context=6)
        assert np.array_equal(line["tokens"][0], expected) and line["tokens"][0] == line["tokens"][1]
        assert line["files"] == [[f"sub/{length}.png"]] * 2
        picture = np.asarray(Image.open(out / "sub" / f"{length}.png"))
        assert picture.shape == (2 * 16, (length + 3) * 16, 3)
        with torch.no_grad():
            pixels = prompter.vq.decode(torch.from_numpy(expected)).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(picture[:16, length * 16 :], np.hstack((pixels * 255).astype(np.uint8)))
        assert np.array_equal(picture[16:, :16], prompter.pixels([folder / "a0.png"])[0])


def test_the_protocol_says_its_settings_and_measures_as_the_reference(folder, reference, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--protocol", "reference", "--prompts", str(reference), "--num-pictures", "2", "--mse", "--original-size"]
    assert command(folder, *words, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "bos False, window frames, rounding truncated, noise ours, temperature 1.0, top_k 50, top_p 1.0" in said
    assert Image.open(out / "sub" / "5.png").size == (2 * 32, 2 * 32)
    prompter = Prompter.from_pretrained(folder / "model", folder / "tokenizer")
    target = (prompter.pixels([folder / "a0.png", folder / "a1.png"]) / 255.0).astype(np.float32)
    errors = []
    for line in map(json.loads, (out / "answers.jsonl").read_text().splitlines()):
        with torch.no_grad():
            pixels = prompter.vq.decode(torch.tensor(line["tokens"]).reshape(-1, TOKENS)).permute(0, 2, 3, 1)
        found = pixels.reshape(2, 2, 16, 16, 3).numpy()  # candidates, pictures
        errors.append(np.mean((found - target) ** 2, dtype=np.float64) * 3)
        assert line["mse"] == pytest.approx(errors[-1], rel=1e-5)
    assert float(said.split("MSE: ")[1].split()[0]) == pytest.approx(np.mean(errors), rel=1e-5)
    record = json.loads((out / "sub" / "3.png.json").read_text())
    assert record["settings"]["top_k"] == 50 and record["settings"]["bos"] is False and record["num_candidates"] == 2


def test_the_protocol_refuses_what_its_list_lacks(folder, reference, tmp_path):
    words = ["--protocol", "reference", "--prompts", str(reference), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="2 targets and 1 pictures to answer"):
        command(folder, *words, "--mse")
    with pytest.raises(UserError, match="--mse belongs to --protocol reference"):
        command(folder, *words[2:], "--mse")
    write_lines(folder / "bad.jsonl", [{"input": ["a0.png"], "output": "../x.png"}])
    with pytest.raises(UserError, match=r"line 1: output \.\./x\.png leads out"):
        command(folder, *words[:3], str(folder / "bad.jsonl"), *words[4:])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["a.png", "./a.png"], r"line 2: output a\.png is that of .* line 1"),
        (["a.png", "a.png/b.png"], r"line 2: output a\.png/b\.png lies below the file a\.png"),
        (["a\0.png"], "cannot name a file"),
        ([".failed/a.png"], "cannot name a file"),
        (["y" * 300 + ".png"], "cannot name a file"),
    ],
)
def test_the_references_outputs_must_be_files_of_their_own(folder, tmp_path, outputs, message):
    rows = [{"input": ["a0.png"], "output": output} for output in outputs]
    file = write_lines(folder / "outputs.jsonl", rows)
    with pytest.raises(UserError, match=message):
        command(folder, "--protocol", "reference", "--prompts", str(file), "--out", str(tmp_path / "out"))
    file = write_lines(folder / "outputs.jsonl", [{"input": ["a0.png"], "output": "a.png", "tuple": 2}])
    with pytest.raises(UserError, match="'tuple' has no meaning in the reference's list"):
        command(folder, "--protocol", "reference", "--prompts", str(file), "--out", str(tmp_path / "out"))
    assert not any(tmp_path.iterdir())


def test_a_picture_that_its_format_cannot_hold_fails_its_prompt_alone(folder, tmp_path):
    Image.new("RGB", (1, 20_000), (9, 9, 9)).save(folder / "tall.png")
    rows = [{"input": ["tall.png"], "output": "tall.webp"}, {"input": ["a0.png"], "output": "a0.webp"}]
    file, out = write_lines(folder / "tall.jsonl", rows), tmp_path / "out"
    words = ["--protocol", "reference", "--prompts", str(file), "--out", str(out), "--original-size"]
    assert command(folder, *words) == 1
    [failed] = map(json.loads, (out / "failed.jsonl").read_text().splitlines())
    assert failed["id"] == "tall" and "cannot hold" in failed["reason"]
    assert (out / "a0.webp").is_file() and not (out / "tall.webp").exists()
