"""A stand-in for the ttnn library without numpy: enough for worker.py to open a device, move
tensors and add them, and ops that misbehave on purpose. STUB_VERSION, STUB_OPEN and STUB_LACKS
choose the trouble."""
import array
import os
import signal
import subprocess
import sys
import time
import types

__version__ = os.environ.get("STUB_VERSION", "0.81.1")
bfloat16, bfloat8_b, float32 = "bfloat16", "bfloat8_b", "float32"
uint32, uint8 = "uint32", "uint8"
TILE_LAYOUT, ROW_MAJOR_LAYOUT = "tile", "row_major"
BufferType = types.SimpleNamespace(DRAM="dram", L1="l1")
DRAM_MEMORY_CONFIG = types.SimpleNamespace(buffer_type="dram")
L1_MEMORY_CONFIG = types.SimpleNamespace(buffer_type="l1")
MathFidelity = types.SimpleNamespace(LoFi=0, HiFi2=2, HiFi3=3, HiFi4=4)
UnaryOpType = types.SimpleNamespace(GELU_TANH=1, SILU=2)


class Tensor:
    def __init__(self, values, dtype, device=None, layout=TILE_LAYOUT, shape=None, memory="dram"):
        self.values, self.dtype, self.layout = list(values), dtype, layout
        self.shape, self.memory = tuple(shape or values.shape), memory

    def memory_config(self):
        return types.SimpleNamespace(buffer_type=self.memory)

    def cpu(self):
        return self

    def to(self, layout):
        return self

    def to_numpy(self):
        return array.array("f", self.values)

    def like(self, values, shape=None, memory_config=DRAM_MEMORY_CONFIG):
        return Tensor(values, self.dtype, None, self.layout, shape or self.shape,
                      memory_config.buffer_type)


class Device:
    def __init__(self):
        self.simulator = None

    def arch(self):
        return "Arch.WORMHOLE_B0"

    def compute_with_storage_grid_size(self):
        return types.SimpleNamespace(x=2, y=2)


def open_device(device_id, trace_region_size=0):
    trouble = os.environ.get("STUB_OPEN")
    if trouble == "fail":
        raise RuntimeError("TT_FATAL @ /x.cpp:1: false\ninfo:\nNo chip with id %d\n"
                           "backtrace:\n --- x" % device_id)
    if trouble == "hang":
        time.sleep(1000)
    device = Device()
    if os.environ.get("TT_METAL_SIMULATOR"):  # like the library: a session of its own
        device.simulator = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    return device


def close_device(device):
    print("the device was closed", file=sys.stderr)


def get_memory_view(device, kind):
    return types.SimpleNamespace(num_banks=12, total_bytes_per_bank=1 << 30,
                                 total_bytes_allocated_per_bank=3 << 20)


def init_device_compute_kernel_config(arch, **options):
    return options


def to_dtype(x, dtype):
    return Tensor(x.values, dtype, None, x.layout, x.shape, x.memory)


def to_device(x, device, memory_config):
    return x.like(x.values, memory_config=memory_config)


def reshape(x, shape):
    return x.like(x.values, shape)


def copy(x, y):
    y.values[:] = x.values
    return y


def add(x, y, memory_config):
    other = y.values if isinstance(y, Tensor) else [y] * len(x.values)
    return x.like([a + b for a, b in zip(x.values, other)], memory_config=memory_config)


def multiply(x, y, memory_config):
    raise RuntimeError("TT_FATAL @ /alloc.cpp:514: false\ninfo:\nOut of Memory: Not enough space to"
                       " allocate 2097152 B L1 buffer across 4 banks\nbacktrace:\n --- x")


def typecast(x, dtype, memory_config):
    raise RuntimeError("TT_THROW @ /cast.cpp:246: tt::exception\ninfo:\nInvalid format\n"
                       "backtrace:\n")


def slice(x, begin, end, memory_config):
    time.sleep(1000)


def pad(x, ends, value, memory_config):
    print("[DEADLOCK cycle=1] no progress\nlast words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def concat(tensors, dim, memory_config):
    os._exit(3)


def begin_trace_capture(device, cq_id):
    return 17


def nothing(*arguments, **options):
    return None


linear = layer_norm = rms_norm = permute = sin = cos = nothing
UnaryWithParam = SDPAProgramConfig = MatmulMultiCoreReuseMultiCastProgramConfig = nothing
MatmulMultiCoreReuseMultiCast1DProgramConfig = embedding = nothing
end_trace_capture = execute_trace = release_trace = nothing
transformer = types.SimpleNamespace(scaled_dot_product_attention=nothing)
experimental = types.SimpleNamespace(rotary_embedding=nothing, nlp_create_qkv_heads=nothing,
                                     nlp_concat_heads=nothing)
for lacking in os.environ.get("STUB_LACKS", "").split():
    del globals()[lacking]
