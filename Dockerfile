# One definition, four images: docker build --target teacher|cpu|gpu|vllm
# Versions of Python packages are those of constraints.txt.

FROM python:3.12-slim AS base
# ca-certificates: the OpenAI client trusts the system's store, and slim images have none.
# tini: signals reach the worker, so that 'docker stop' lets it finish its task.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 factory \
 && install -d -o factory -g factory /data /data/out /home/factory/.cache
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false FACTORY_STORE=/data/runs
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY factory factory
COPY workers workers
COPY datasets datasets
COPY questions questions
ENTRYPOINT ["tini", "--"]

# teacher: HTTP only. No torch; Flower and the object store's client are small enough to share it.
FROM base AS teacher
RUN pip install --constraint constraints.txt '.[flower,s3]'
USER factory
CMD ["celery", "-A", "factory", "worker", "-Q", "teacher"]

# cpu: the target model without a GPU, the reduction, and the server.
FROM base AS cpu
# TORCH_INDEX_URL: PyTorch's index of CPU wheels; without it the image carries CUDA, which is 3 GB of nothing.
ARG TORCH_INDEX_URL=
RUN pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch \
 && pip install --constraint constraints.txt '.[target,serve,flower,s3]'
USER factory
CMD ["celery", "-A", "factory", "worker", "-Q", "gpu,reduce"]

# gpu: torch's default wheels for Linux bring CUDA; only the driver comes from the host.
FROM base AS gpu
RUN pip install --constraint constraints.txt torch \
 && pip install --constraint constraints.txt '.[gpu,serve,s3]'
USER factory
CMD ["celery", "-A", "factory", "worker", "-Q", "gpu"]

# vllm: its server with the connector. vLLM brings a torch and a transformers of its own, so of this package comes
# the code alone; what the connector needs besides, vLLM has. Kernels are compiled at the first start: a C compiler.
FROM base AS vllm
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc g++ \
 && rm -rf /var/lib/apt/lists/* \
 && pip install 'vllm==0.32.*' \
 && pip install --no-deps .
USER factory
CMD ["python", "-m", "vllm.entrypoints.openai.api_server", "--help"]
