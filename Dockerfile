# onnxplain for NVIDIA GPUs, or for the CPU with --build-arg RUNTIME=cpu; --build-arg EXTRAS=s3,oci,mlflow,telemetry adds extras.
#   docker build -t onnxplain .
#   docker run --rm --gpus all -p 127.0.0.1:8000-8001:8000-8001 onnxplain
#   docker run --rm --gpus all -p 127.0.0.1:8000-8001:8000-8001 -v "$PWD/my_models:/models:ro" -e ONNXPLAIN_MODELS=/models onnxplain
#   docker run --rm --gpus all --user "$(id -u)" -v "$PWD:/data" onnxplain run mobilenet_v2 /data/photo.png
ARG RUNTIME=gpu

FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS gpu
FROM debian:trixie-slim AS cpu

# hadolint ignore=DL3006
FROM ${RUNTIME} AS python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/log/apt /var/log/dpkg.log

FROM python AS build
ARG RUNTIME
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN cp /var/lib/dpkg/status /status
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip python3-venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY container container
COPY onnxplain onnxplain
# The wheel asks for onnxruntime-gpu; the list names one onnxruntime, and the wheel comes without what it asks for.
# hadolint ignore=DL3013
RUN python3 -m venv --without-pip /opt/venv \
    && python3 container/requirements.py "$RUNTIME" "$EXTRAS" >/requirements.txt \
    && pip --python /opt/venv/bin/python install --no-compile -r /requirements.txt \
    && pip --python /opt/venv/bin/python install --no-compile --no-deps . \
    && python3 container/slim.py /opt/venv \
    && PYTHONDONTWRITEBYTECODE=1 /opt/venv/bin/python -P container/bytecode.py
COPY models /opt/onnxplain/models
# hadolint ignore=DL3013
RUN python3 -m venv --without-pip /opt/tools \
    && pip --python /opt/tools/bin/python install 'cyclonedx-python-lib[json-validation]>=9,<12' \
    && /opt/tools/bin/python container/sbom.py /opt/venv /status /opt/onnxplain/models /opt/onnxplain/sbom.cdx.json

# hadolint ignore=DL3006
FROM python
RUN useradd --create-home --uid 10001 onnxplain \
    && install -d -o onnxplain -g onnxplain /data
COPY --from=build /opt/venv /opt/venv
# The models, and sbom.cdx.json: what is in this image.
COPY --from=build /opt/onnxplain /opt/onnxplain
# --user may name somebody without a home: what matplotlib caches goes to /tmp. The server listens on all of the container's
# addresses, in plain text: publish its ports on loopback only, as above, or set ONNXPLAIN_TLS_CERT and ONNXPLAIN_TLS_KEY.
# `onnxplain health` reads the same variables.
ENV PATH=/opt/venv/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ONNXPLAIN_MODELS=/opt/onnxplain/models ONNXPLAIN_HOST=0.0.0.0 ONNXPLAIN_INSECURE=true
USER 10001
WORKDIR /data

EXPOSE 8000 8001 8002
# Ready by ONNXPLAIN_READINESS: every model that was ever good here answers.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["onnxplain", "health"]

ENTRYPOINT ["onnxplain"]
CMD ["serve"]
