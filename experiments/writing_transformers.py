"""The other side of `experiments.writing`: runs in an environment with transformers, and needs nothing of this package.

The argument is the sizes as JSON. Writes once for every line that it gets, and prints the seconds that it took.
"""

import json
import sys
import time
from importlib import import_module

transformers = import_module("transformers")  # by name, as nothing of this repository depends on it
sizes = json.loads(sys.argv[1])
prompt, tokens = sizes.pop("prompt"), sizes.pop("tokens")
model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes)).eval()
ids = [[1] * prompt]
inputs = transformers.BatchFeature({"input_ids": ids, "attention_mask": ids}, tensor_type="pt")
for _ in sys.stdin:
    begin = time.perf_counter()
    model.generate(**inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
    print(time.perf_counter() - begin, flush=True)
