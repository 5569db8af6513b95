"""Steer with a vector that 'svf evaluate' (or 'svf generate') has measured: python examples/evaluated_vector.py FILE.

Prints what was recommended for it, then answers steered so: by ``generate``, and by the model's own ``generate``,
as any generation loop of transformers can be steered.
"""

import sys

from factory import Steering, SteeringVector, generate, load_target

vector = SteeringVector.load(sys.argv[1])
target = load_target(vector.model_name, device="cpu")
steering = Steering.recommended(vector)
print(
    f"{vector.style_name}: {len(steering.vector.layer_indices)} layers, strength {steering.strength:g}, "
    f"keys {steering.key_strength:g}, positions {steering.n_positions}"
)

question = "How can I learn to play the guitar?"
print(generate(target, question, vector=steering, max_new_tokens=60))

ids = target.tensor([[*target.prompt_ids([{"role": "user", "content": question}]), target.neutral_id]])
with steering.applied(target):
    output = target.model.generate(input_ids=ids, max_new_tokens=60, do_sample=False)
print(target.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
