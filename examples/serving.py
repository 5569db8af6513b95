"""Ask a running ``svf serve`` with the openai package: python examples/serving.py [QUESTION].

Prints the unsteered answer, then one for each vector that the server has, as it streams. With a key in
SVF_SERVER_KEY, sends it.
"""

import os
import sys

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=os.environ.get("SVF_SERVER_KEY") or "none")
question = sys.argv[1] if len(sys.argv) > 1 else "How can I learn to play the guitar?"
for model in client.models.list():
    print(f"\n\n{model.id}\n")
    messages = [{"role": "user", "content": question}]
    for chunk in client.chat.completions.create(model=model.id, messages=messages, max_tokens=80, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
