"""What vLLM answers for exported folders, as JSON: python vllm_answers.py REQUESTS.json ANSWERS.json

Runs in an environment of vLLM's own, whose pins are not ours, and needs nothing of this project.
"""

import gc
import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def answers(folder, prompts, texts, num_codes, num_tokens, draws):
    """Greedy answers to prompts of ids and to texts, and `draws` answers by chance to the first prompt."""
    llm = LLM(folder, dtype="float32", max_num_seqs=8, gpu_memory_utilization=0.3, enforce_eager=True)
    codes = {"allowed_token_ids": list(range(num_codes)), "max_tokens": num_tokens, "logprobs": 0}
    greedy = SamplingParams(temperature=0.0, **codes)
    ids = [{"prompt_token_ids": prompt} for prompt in prompts]
    found = {
        "prompts": [described(request.outputs[0]) for request in llm.generate(ids, greedy)],
        "texts": [described(request.outputs[0]) for request in llm.generate(texts, greedy)],
        "drawn": [
            described(output)
            for request in llm.generate(ids[:1], SamplingParams(n=draws, seed=0, **codes))
            for output in request.outputs
        ],
    }
    del llm
    gc.collect()
    return found


def described(output):
    log_probs = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    return {"tokens": list(output.token_ids), "log_probs": log_probs, "text": output.text}


if __name__ == "__main__":
    requests = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps({name: answers(**request) for name, request in requests.items()}))
