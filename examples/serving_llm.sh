#!/usr/bin/env bash
# Ask a running 'svf serve' with the llm command line (pip install llm): examples/serving_llm.sh MODEL [QUESTION]
# MODEL is one that SERVER/v1/models lists. It is made known to llm in a folder of its own, so your llm's
# settings stay as they are. SVF_SERVER_KEY is sent where it is set.
set -euo pipefail
export LLM_USER_PATH
LLM_USER_PATH=$(mktemp -d)
trap 'rm -rf "$LLM_USER_PATH"' EXIT
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- {model_id: steered, model_name: "$1", api_base: "${SERVER:-http://127.0.0.1:8000}/v1", api_key_name: svf}
YAML
llm -m steered --key "${SVF_SERVER_KEY:-none}" -o max_tokens 80 "${2:-How can I learn to play the guitar?}"
