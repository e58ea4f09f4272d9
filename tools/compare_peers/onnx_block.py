"""As openvino_block.py, in ONNX Runtime. PRECISION: f32 or int8."""

import types

import numpy as np
import onnxruntime

import openvino_block

KINDS = {"f32": "onnx", "int8": "onnx-int8"}


class Request:
    """A session with the memory of its inputs and outputs, used like a request of OpenVINO."""

    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.model_outputs = [
            types.SimpleNamespace(any_name=output.name) for output in self.session.get_outputs()
        ]
        ports = self.session.get_inputs() + self.session.get_outputs()
        self.tensors = {
            port.name: types.SimpleNamespace(data=np.zeros(port.shape, np.float32))
            for port in ports
        }
        self.binding = None

    def get_tensor(self, name):
        return self.tensors[name]

    def set_tensor(self, name, tensor):
        self.tensors[name] = tensor

    def infer(self):
        if not self.binding:
            self.binding = self.session.io_binding()
            for ports, bind in (
                (self.session.get_inputs(), self.binding.bind_input),
                (self.session.get_outputs(), self.binding.bind_output),
            ):
                for port in ports:
                    data = self.tensors[port.name].data
                    bind(port.name, "cpu", 0, np.float32, data.shape, data.ctypes.data)
        self.session.run_with_iobinding(self.binding)


def load(folder, part, precision, threads):
    return Request(folder / f"{part}.{KINDS[precision]}.onnx", threads)


if __name__ == "__main__":
    openvino_block.main(load, KINDS)
