# onnxplain for NVIDIA GPUs, or for the CPU with --build-arg RUNTIME=cpu.
#   docker build -t onnxplain .
#   docker run --rm --gpus all --user "$(id -u)" -v "$PWD:/data" onnxplain run mobilenet_v2 /data/photo.png
ARG RUNTIME=gpu

FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS gpu
FROM ubuntu:24.04 AS cpu

FROM ubuntu:24.04 AS build
ARG RUNTIME
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY onnxplain onnxplain
# The wheel asks for onnxruntime-gpu, which runs on the CPU as well but is much larger: the CPU image takes the plain one.
# hadolint ignore=DL3013
RUN pip install . \
    && if [ "$RUNTIME" = cpu ]; then \
         pip uninstall -y onnxruntime-gpu onnxruntime && pip install 'onnxruntime>=1.20'; \
       fi

# hadolint ignore=DL3006
FROM ${RUNTIME}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 onnxplain \
    && install -d -o onnxplain -g onnxplain /data
COPY --from=build /opt/venv /opt/venv
COPY models /opt/onnxplain/models
# --user may name somebody without a home: what matplotlib caches goes to /tmp.
ENV PATH=/opt/venv/bin:$PATH ONNXPLAIN_MODELS=/opt/onnxplain/models MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
USER onnxplain
WORKDIR /data

# There is no server in the image yet: healthy means that onnxruntime runs a small model here, and nothing more.
# The gRPC health check takes this place when the server lands.
HEALTHCHECK --interval=5m --timeout=60s --start-period=10s --retries=2 \
    CMD onnxplain doctor --json | grep -q '"self-test": "ok'

ENTRYPOINT ["onnxplain"]
CMD ["doctor"]
