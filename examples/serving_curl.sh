#!/usr/bin/env bash
# Ask a running 'svf serve' with curl: examples/serving_curl.sh MODEL [QUESTION]
# MODEL is one that SERVER/v1/models lists, such as smollm2-135m-instruct:step_by_step_reasoning. The answer
# streams as server-sent events. SVF_SERVER_KEY is sent where it is set.
set -euo pipefail
server="${SERVER:-http://127.0.0.1:8000}"
body=$(python3 -c 'import json, sys; model, question = sys.argv[1:]
print(json.dumps({"model": model, "stream": True, "max_tokens": 80,
                  "messages": [{"role": "user", "content": question}]}))' \
    "$1" "${2:-How can I learn to play the guitar?}")
curl --no-buffer --fail-with-body --silent --show-error "$server/v1/chat/completions" \
    -H 'Content-Type: application/json' -H "Authorization: Bearer ${SVF_SERVER_KEY:-none}" -d "$body"
