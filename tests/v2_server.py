"""A server of the Open Inference Protocol v2, in a process of its own: python -P tests/v2_server.py FOLDER [OPTIONS].

FOLDER is a model's folder in a repository that reid-export --triton wrote. With --plain it tells no configuration, as
KServe and OpenVINO Model Server tell none. What --wrong names is wrong from the start, and what the file of --fault
says, from then on.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from google.protobuf import text_format

from reidserve.embed.contract import decode_contract
from reidserve.embed.onnx_session import OnnxSession
from reidserve.embed.place import CONTRACT_KEY
from reidserve.proto.inference import inference_pb2 as v2
from reidserve.proto.inference.inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)


class Model(GRPCInferenceServiceServicer):
    def __init__(self, folder: Path, *, name: str, plain: bool, wrong: str, fault: Path | None) -> None:
        self.config = v2.ModelConfig(name=name)
        text_format.Parse((folder / "config.pbtxt").read_text(), self.config, allow_unknown_field=True)
        self.contract = decode_contract(self.config.parameters[CONTRACT_KEY].string_value.encode())
        self.session = OnnxSession((folder / "1" / "model.onnx").read_bytes())
        self.name, self.plain, self.wrong, self.fault_file = name, plain, wrong, fault

    @property
    def fault(self) -> str:
        return self.fault_file.read_text() if self.fault_file is not None and self.fault_file.exists() else ""

    def ServerLive(self, request, context):
        return v2.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):
        return v2.ServerReadyResponse(ready=True)

    def ModelReady(self, request, context):
        return v2.ModelReadyResponse(ready=request.name == self.name and self.fault != "unready")

    def ModelConfig(self, request, context):
        if self.plain:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return v2.ModelConfigResponse(config=self.config)

    def ModelMetadata(self, request, context):
        if request.name != self.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model {request.name}")
        tensor = v2.ModelMetadataResponse.TensorMetadata
        height, width, dim = self.contract.height, self.contract.width, self.contract.dim
        inputs = [tensor(name="crops", datatype="UINT8", shape=[-1, height, width, 3])]
        outputs = [tensor(name="embeddings", datatype="FP32", shape=[-1, dim])]
        match self.wrong:
            case "height":
                inputs[0].shape[1] = height + 1
            case "dim":
                outputs[0].shape[1] = dim + 1
            case "dtype":
                inputs[0].datatype = "FP32"
            case "outputs":
                outputs.append(tensor(name="logits", datatype="FP32", shape=[-1, 5]))
        return v2.ModelMetadataResponse(
            name=self.name, versions=["1"], platform="Stand-in (ONNX)", inputs=inputs, outputs=outputs
        )

    def ModelInfer(self, request, context):
        (given,) = request.inputs
        batch = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(given.shape)
        if len(batch) > self.config.max_batch_size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"batch of {len(batch)} is above the maximum")
        rows, version = self.session(batch), "1"
        match self.fault:
            case "slow":
                time.sleep(60)
            case "refuse":
                context.abort(grpc.StatusCode.INTERNAL, "out of memory\nat a.cc:7")
            case "nan":
                rows = np.full_like(rows, np.nan)
            case "columns":
                rows = rows[:, 1:]
            case "rows":
                rows = rows[1:]
            case "huge":
                rows = np.zeros((2**17, 128), np.float32)
            case "version":
                version = "2"
            case "another model":
                rows = rows[:, ::-1]
        output = v2.ModelInferResponse.InferOutputTensor(name="embeddings", datatype="FP32", shape=rows.shape)
        answer = v2.ModelInferResponse(model_name=self.name, model_version=version, outputs=[output])
        if self.fault == "numbers":
            answer.outputs[0].contents.fp32_contents.extend(rows.ravel().tolist())
        elif self.fault == "short":
            answer.raw_output_contents.append(rows.tobytes()[:-4])
        else:
            answer.raw_output_contents.append(np.ascontiguousarray(rows).tobytes())
        return answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="reid")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--wrong", default="")
    parser.add_argument("--fault", type=Path)
    said = parser.parse_args()
    model = Model(said.folder, name=said.name, plain=said.plain, wrong=said.wrong, fault=said.fault)
    server = grpc.server(
        ThreadPoolExecutor(4),
        options=[("grpc.so_reuseport", 0), *((f"grpc.max_{way}_message_length", -1) for way in ("receive", "send"))],
    )
    add_GRPCInferenceServiceServicer_to_server(model, server)
    port = server.add_insecure_port(f"127.0.0.1:{said.port}")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
