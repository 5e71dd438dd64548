# reid-serve and the gallery commands, without torch, as a user without rights.
#   docker build -t reidserve .
#   docker build -t reidserve:gpu --build-arg ENGINE=gpu .        (CUDA 13; not verified on hardware)
#   docker build -t reidserve:tensorrt --build-arg ENGINE=gpu,tensorrt .   (likewise)
#   docker run --user "$(id -u):$(id -g)" -v "$PWD":/data -p 50051:50051 reidserve
# A gallery is opened in a folder that can be written: SQLite's write-ahead log lives beside it.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG ENGINE=cpu
WORKDIR /source
COPY . .
RUN python -m venv /opt/reidserve \
    && /opt/reidserve/bin/pip install --no-cache-dir -c constraints.txt ".[${ENGINE}]"

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 10001 reidserve
COPY --from=build /opt/reidserve /opt/reidserve
ENV PATH=/opt/reidserve/bin:$PATH
USER reidserve
WORKDIR /data
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "\
import sys, grpc; \
from grpc_health.v1 import health_pb2 as pb, health_pb2_grpc as rpc; \
channel = grpc.insecure_channel('127.0.0.1:50051'); \
sys.exit(rpc.HealthStub(channel).Check(pb.HealthCheckRequest(), timeout=2).status != pb.HealthCheckResponse.SERVING)"]
ENTRYPOINT ["reid-serve"]
CMD ["--model", "model", "--gallery", "gallery.gallery", "--listen", "0.0.0.0:50051", "--insecure"]
