"""Run in vLLM's environment: answers a file of batches by vLLM's own engine, and writes what came out.

``{"engine": arguments of LLM, "batches": [[{"prompt": ids, "asked": kv_transfer_params or None, "n": tokens}]]}``
"""

import json
import sys

from vllm import LLM, SamplingParams


def answered(engine, batch):
    """Token ids and the reason of the end of each request of a batch."""
    prompts = [{"prompt_token_ids": one["prompt"]} for one in batch]
    sampling = [
        SamplingParams(
            temperature=0,
            max_tokens=one["n"],
            ignore_eos=True,  # the model's configuration names no end, its tokenizer does
            extra_args=None if one["asked"] is None else {"kv_transfer_params": one["asked"]},
        )
        for one in batch
    ]
    results = engine.generate(prompts, sampling, use_tqdm=False)
    return [[list(result.outputs[0].token_ids), result.outputs[0].finish_reason] for result in results]


def main():
    """Read the job, write the answers."""
    with open(sys.argv[1]) as file:
        job = json.load(file)
    engine = LLM(disable_log_stats=False, **job["engine"])
    answers = [answered(engine, batch) for batch in job["batches"]]
    counted = {one.name: one.value for one in engine.get_metrics() if hasattr(one, "value")}
    with open(sys.argv[2], "w") as file:
        json.dump({"answers": answers, "counted": counted}, file)


if __name__ == "__main__":
    main()
