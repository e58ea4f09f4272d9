"""A stand-in for the ttnn library without numpy: enough for worker.py to open a device, move
tensors and add them, and ops that misbehave on purpose. STUB_VERSION, STUB_OPEN, STUB_LACKS and
STUB_FILES choose the trouble."""
import array
import os
import signal
import struct
import subprocess
import sys
import time
import types

__version__ = os.environ.get("STUB_VERSION", "0.81.1")
bfloat16, bfloat8_b, float32, uint32 = "bfloat16", "bfloat8_b", "float32", "uint32"
TILE_LAYOUT, ROW_MAJOR_LAYOUT = "tile", "row_major"
BufferType = types.SimpleNamespace(DRAM="dram", L1="l1")
DRAM_MEMORY_CONFIG = types.SimpleNamespace(buffer_type="dram")
L1_MEMORY_CONFIG = types.SimpleNamespace(buffer_type="l1")
MathFidelity = types.SimpleNamespace(LoFi=0, HiFi2=2, HiFi3=3, HiFi4=4)
UnaryOpType = types.SimpleNamespace(GELU_TANH=1, SILU=2)
KINDS = [bfloat16, bfloat8_b, float32, uint32]
HEADER = struct.Struct("<QBB4q")  # bytes after the first eight, kind, row-major, dims


class Tensor:
    def __init__(self, values, dtype, device=None, layout=TILE_LAYOUT, shape=(), memory="dram"):
        if not isinstance(values, list):  # an array of numpy
            shape, values = values.shape, values.reshape(-1).tolist()
        self.values, self.dtype, self.layout = values, dtype, layout
        self.shape, self.memory = tuple(shape), memory

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


def volume(shape):
    return shape[0] * shape[1] * shape[2] * shape[3]


def places(dtype, layout, shape):
    """Where each stored value stands in the logical tensor, -1 for padding."""
    if layout == ROW_MAJOR_LAYOUT:
        return list(range(volume(shape)))
    rows, columns = -(-shape[2] // 32), -(-shape[3] // 32)
    found = []
    for matrix in range(shape[0] * shape[1]):
        for tile in range(rows * columns):
            for n in range(1024):
                r = tile // columns * 32 + n // 512 * 16 + n % 256 // 16
                c = tile % columns * 32 + n // 256 % 2 * 16 + n % 16
                inside = r < shape[2] and c < shape[3]
                found.append((matrix * shape[2] + r) * shape[3] + c if inside else -1)
    return found


def stored_bytes(dtype, layout, shape):
    whole = [*shape[:2], *(-(-n // 32) * 32 if layout == TILE_LAYOUT else n for n in shape[2:])]
    n = volume(whole)
    return {bfloat16: 2 * n, bfloat8_b: n // 1024 * 1088, float32: 4 * n, uint32: 4 * n}[dtype]


def stored_values(dtype, data):
    if dtype == bfloat16:
        return [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]
    if dtype == bfloat8_b:
        return [(-1) ** (b >> 7) * (b & 127) * 2.0 ** (data[t + n // 16] - 133)
                for t in range(0, len(data), 1088) for n, b in enumerate(data[t + 64:t + 1088])]
    return memoryview(data).cast("f" if dtype == float32 else "I").tolist()


def zeros(shape, dtype, layout):
    return Tensor([0] * volume(shape), dtype, None, layout, shape)


def dump_tensor(path, x):
    with open(path, "wb") as f:
        if os.environ.get("STUB_FILES") == "other":
            return f.write(b"another kind of file")
        f.write(HEADER.pack(HEADER.size - 8, KINDS.index(x.dtype), x.layout != TILE_LAYOUT,
                            *x.shape) + bytes(stored_bytes(x.dtype, x.layout, x.shape)))


def load_tensor(path, device):
    with open(path, "rb") as f:
        data = f.read()
    size, kind, row_major, *shape = HEADER.unpack_from(data)
    dtype, layout = KINDS[kind], (TILE_LAYOUT, ROW_MAJOR_LAYOUT)[row_major]
    values = [0] * volume(shape)
    for place, value in zip(places(dtype, layout, shape), stored_values(dtype, data[8 + size:])):
        if place >= 0:
            values[place] = value
    return Tensor(values, dtype, device, layout, shape)


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
        raise RuntimeError("TT_FATAL @ /x.cpp:1: false\ninfo:\nNo chip with id 0\n"
                           "backtrace:\n --- x")
    if trouble == "hang":
        time.sleep(1000)
    device = Device()
    if os.environ.get("TT_METAL_SIMULATOR"):  # like the library: a session of its own
        device.simulator = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    return device


def close_device(device):
    print("the device was closed", file=sys.stderr)


def get_memory_view(device, kind):
    return types.SimpleNamespace(num_banks=12, total_bytes_per_bank=1 << 30)


def init_device_compute_kernel_config(arch, **options):
    return options


def to_dtype(x, dtype):
    return Tensor(x.values, dtype, None, x.layout, x.shape, x.memory)


def to_memory_config(x, memory_config):
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


linear = layer_norm = rms_norm = nothing
UnaryWithParam = SDPAProgramConfig = MatmulMultiCoreReuseMultiCastProgramConfig = nothing
MatmulMultiCoreReuseMultiCast1DProgramConfig = embedding = nothing
end_trace_capture = execute_trace = release_trace = nothing
transformer = types.SimpleNamespace(scaled_dot_product_attention=nothing)
experimental = types.SimpleNamespace(rotary_embedding=nothing, nlp_create_qkv_heads=nothing,
                                     nlp_concat_heads=nothing)
for lacking in os.environ.get("STUB_LACKS", "").split():
    del globals()[lacking]
