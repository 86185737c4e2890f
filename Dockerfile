# onnxplain for NVIDIA GPUs, or for the CPU with --build-arg RUNTIME=cpu.
#   docker build -t onnxplain .
#   docker run --rm --gpus all -p 127.0.0.1:8001:8001 onnxplain
#   docker run --rm --gpus all -p 127.0.0.1:8001:8001 -v "$PWD/my_models:/models:ro" -e ONNXPLAIN_MODELS=/models onnxplain
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

EXPOSE 8001 8002
# Ready means: every model of the repository answers.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["onnxplain", "health"]

ENTRYPOINT ["onnxplain"]
# Plain text on all of the container's addresses: publish the port on loopback only, as above, or give --tls-cert and --tls-key.
CMD ["serve", "--host", "0.0.0.0", "--insecure"]
