from factory import SteeringVector, build_vector, generate, load_pairs, load_target, render

target = load_target("smollm2-135m-instruct", device="cpu")
pairs = load_pairs("datasets/step_by_step_reasoning_pairs.jsonl")
vector = build_vector(pairs, target, style="step_by_step_reasoning", recipe="fewshot", layers="all")
vector.save("step_by_step_reasoning.pt")
vector = SteeringVector.load("step_by_step_reasoning.pt")
print(generate(target, "How can I learn to play the guitar?", vector=vector, strength=4.0, max_new_tokens=120))

seen = render(pairs[0], target, recipe="fewshot", pairs=pairs)
print(len(seen.positive_ids), "tokens read in the style; states taken at", seen.positive_positions)
