# reid-serve and the gallery commands, without torch, as a user without rights.
#   docker build -t reidserve .
#   docker build -t reidserve:gpu --build-arg ENGINE=gpu .        (CUDA 13; not verified on hardware)
#   docker build -t reidserve:tensorrt --build-arg ENGINE=gpu,tensorrt .   (likewise)
#   docker run --read-only --tmpfs /tmp --user "$(id -u):$(id -g)" -v "$PWD":/data -p 127.0.0.1:50051:50051 reidserve
# Nothing outside /data and /tmp is written, and of those only: the galleries' folders (SQLite's write-ahead log and the
# index's cache lie in them), --snapshots, the folder of --audit, and /tmp for what compacts a gallery.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG ENGINE=cpu
WORKDIR /source
COPY . .
RUN python -m venv /opt/reidserve \
    && /opt/reidserve/bin/pip install --no-cache-dir -c constraints.txt ".[${ENGINE},http,telemetry,milvus]"

FROM python:${PYTHON}-slim
# A new volume takes over whose the folder is that it is mounted on.
RUN useradd --create-home --uid 10001 reidserve && install -d -o reidserve -g reidserve /data /data/galleries
COPY --from=build /opt/reidserve /opt/reidserve
ENV PATH=/opt/reidserve/bin:$PATH
# What one thread let go of another one takes: docs/deploying.md has what that was measured to save.
ENV MALLOC_ARENA_MAX=1
USER 10001:10001
WORKDIR /data
EXPOSE 50051 8080
# Of a server without TLS: with it, run without this check (--no-healthcheck) and ask /readyz over HTTPS instead.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "\
import sys, grpc; \
from grpc_health.v1 import health_pb2 as pb, health_pb2_grpc as rpc; \
channel = grpc.insecure_channel('127.0.0.1:50051'); \
sys.exit(rpc.HealthStub(channel).Check(pb.HealthCheckRequest(), timeout=4).status != pb.HealthCheckResponse.SERVING)"]
ENTRYPOINT ["reid-serve"]
CMD ["--model", "model", "--gallery", "gallery.gallery", "--listen", "0.0.0.0:50051", "--insecure"]
