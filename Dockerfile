# The endpoint as an image, for SageMaker or any engine: docker build -t qkv . && docker run -p 8080:8080 qkv
#
# It needs no hub: emblem comes with the package, SmolLM2 and MiniLM out of wheels of the Python package index. A model of
# your own goes to /opt/ml/model (qkv/serve/container.py has the order and the variables). The compiler stays, since the
# kernels are compiled once, for the processor that the image runs on.
# This file is linted, and its steps were run one by one in a plain environment; the image itself was not built, since no
# engine runs where it was written.
FROM python:3.11-slim

# Where SageMaker wants to bind to a port of its own.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 QKV_HOME=/opt/qkv

# Versions of Debian's packages are those of the base image's day.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY qkv ./qkv

# PIP_ARGS: for example an index of PyTorch's wheels without CUDA, a tenth of the size.
ARG PIP_ARGS=""
# hadolint ignore=DL3013,SC2086
RUN python -m pip install -c constraints.txt $PIP_ARGS '.[serve,train,structured]'

# Each is one exact wheel, checked by its hash.
RUN qkv pull smollm2 && qkv pull minilm

WORKDIR /
EXPOSE 8080
ENTRYPOINT ["python", "-m", "qkv.serve.container"]
CMD ["serve"]
