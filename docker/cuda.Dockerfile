# A model server on an NVIDIA GPU. BASE holds CUDA 13 and cuDNN 9 (a "cudnn-runtime" image) and /usr/bin/python3 of the
# version that the wheels are built for: docker build --build-arg BASE=… - < context.tar; run it with --gpus all.
ARG BASE
FROM ${BASE}
COPY toolchain/ /opt/toolchain/
ENV PYTHONPATH=/opt/toolchain/lib PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/toolchain
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Run it with --read-only --cap-drop=all --security-opt no-new-privileges; it writes nothing.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/usr/bin/python3", "-m", \
    "toolchain.runtime.server.ready", "8080"]
ENTRYPOINT ["/usr/bin/python3", "-m", "toolchain.runtime", "serve", "/opt/toolchain/bundle", \
    "--host", "0.0.0.0", "--port", "8080", "--provider", "cuda"]
