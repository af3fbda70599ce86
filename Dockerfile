# capgap with everything that a study needs, for a CPU or for NVIDIA GPUs:
#   docker build --tag capgap .
# PyPI's torch holds the CUDA libraries, several GB that a CPU has no use for. PyTorch's own index has
# builds without them: docker build --build-arg TORCH_INDEX=<address of that index> --tag capgap:cpu .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/study" capgap run
# A GPU needs `docker run --gpus all`. apptainer.def makes an Apptainer image of it.
ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim-bookworm

# g++ is for the setting `compile`, git for `capgap save`.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/capgap
COPY requirements.lock ./
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --constraint requirements.lock torch \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}

COPY pyproject.toml README.md LICENSE Snakefile config.yaml ./
COPY rules rules
COPY profiles profiles
COPY envs envs
COPY configs configs
COPY studies studies
COPY src src
ARG EXTRAS=examples,remotes,harness,track
RUN pip install --no-cache-dir --constraint requirements.lock ".[${EXTRAS}]"

# HOME: whoever runs the image by --user has none, and caches need a place
ENV HOME=/tmp
WORKDIR /study
ENTRYPOINT ["capgap"]
CMD ["--help"]
