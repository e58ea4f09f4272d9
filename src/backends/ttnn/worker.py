"""Holds the ttnn library and one device, and answers the calls of tt_api.h over a socket.

Started by worker_keeper.py. A message is a row of 64-bit words, whose names tendon gives as an
argument (worker.cc); tensors travel through a shared memory file that tendon sizes. Nothing here
knows about padding, masks or blocks: that is the mapping layer's.
"""
import collections
import functools
import importlib
import importlib.metadata
import os
import platform
import socket
import struct
import sys
import time

from worker_files import SHARED, TensorFiles

KNOWN_VERSIONS = ("0.81.1",)
SOCKET = 3  # its descriptor, see worker_process.cc
MESSAGE_BYTES_MAX = 1 << 16
TEXT_BYTES_MAX = 4000
# Per core. The library tells only what its allocator may use of it.
L1_BYTES = {"wormhole_b0": 1499136, "blackhole": 1572864}
REPLY = struct.Struct("<3q")  # exit code of the fault, nanoseconds in the library, outputs
OUTPUT = struct.Struct("<7q")  # format, layout, memory, dims
OK, BACKEND, MEMORY, INTERNAL = 0, 5, 6, 70  # see include/tendon/error.h

# What is needed of the library.
NEEDED = """
    open_device close_device dump_tensor load_tensor zeros Tensor to_dtype to_memory_config
    get_memory_view BufferType bfloat16 bfloat8_b float32 uint32 TILE_LAYOUT ROW_MAJOR_LAYOUT
    DRAM_MEMORY_CONFIG L1_MEMORY_CONFIG MathFidelity init_device_compute_kernel_config
    reshape slice pad concat typecast linear UnaryWithParam UnaryOpType.GELU_TANH UnaryOpType.SILU
    MatmulMultiCoreReuseMultiCastProgramConfig MatmulMultiCoreReuseMultiCast1DProgramConfig
    layer_norm rms_norm transformer.scaled_dot_product_attention SDPAProgramConfig
    experimental.rotary_embedding experimental.nlp_create_qkv_heads experimental.nlp_concat_heads
    embedding add multiply copy begin_trace_capture end_trace_capture execute_trace release_trace
    """.split()


class Unsupported(Exception):
    """This device has no such call."""


def attribute(root, path):
    for name in path.split("."):
        root = getattr(root, name, None)
    return root


def reason(error):
    """What the library said, without its C++ backtrace."""
    text = str(error)
    _, _, info = text.partition("info:\n")
    place = text.split("\n", 1)[0].split(" @ ")[0] if info else type(error).__name__
    text = (info or text).partition("backtrace:")[0]
    return f"{place}: {' '.join(text.split())}"


def is_out_of_memory(error):
    text = str(error)
    return isinstance(error, MemoryError) or any(
        words in text for words in ("Out of Memory", "beyond max L1 size", "clash with L1 buffers"))


class Library:
    """The library, what it lacks, and its names for our formats, layouts and memories."""

    def __init__(self):
        self.ttnn = ttnn = importlib.import_module("ttnn")
        try:
            self.version = importlib.metadata.version("ttnn")
        except importlib.metadata.PackageNotFoundError:
            self.version = getattr(ttnn, "__version__", "unknown")
        self.missing = [name for name in NEEDED if attribute(ttnn, name) is None]
        if self.missing:
            return
        self.formats = (ttnn.bfloat16, ttnn.bfloat8_b, ttnn.uint32)
        self.layouts = (ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT)
        self.memories = (ttnn.DRAM_MEMORY_CONFIG, ttnn.L1_MEMORY_CONFIG)
        self.fidelities = (ttnn.MathFidelity.HiFi2, ttnn.MathFidelity.HiFi4)
        buffers = (ttnn.BufferType.DRAM, ttnn.BufferType.L1)
        self.format_of, self.layout_of, self.buffer_of = (
            {name: i for i, name in enumerate(names)}
            for names in (self.formats, self.layouts, buffers))
        self.activations = [None, ttnn.UnaryWithParam(ttnn.UnaryOpType.GELU_TANH),
                            ttnn.UnaryWithParam(ttnn.UnaryOpType.SILU)]


class Calls:
    """Each method turns a request into (function, arguments, options) of the library."""

    def __init__(self, library, device):
        self.ttnn, self.library, self.device = library.ttnn, library, device
        self.grid = device.compute_with_storage_grid_size()
        self.kept = {}  # configurations made before, by their numbers

    def compute(self, w):
        key = (w.fidelity, w.f32_accumulate)
        if key not in self.kept:
            self.kept[key] = self.ttnn.init_device_compute_kernel_config(
                self.device.arch(), math_fidelity=self.library.fidelities[w.fidelity],
                fp32_dest_acc_en=bool(w.f32_accumulate), packer_l1_acc=False,
                math_approx_mode=False)
        return self.kept[key]

    def memory(self, w):
        return {"memory_config": self.library.memories[w.memory]}

    def reshape(self, w, x):
        return self.ttnn.reshape, (x[0], w.dims), {}

    def slice(self, w, x):
        return self.ttnn.slice, (x[0], w.begin, w.dims), self.memory(w)

    def pad(self, w, x):
        ends = [(0, to - n) for to, n in zip(w.dims, x[0].shape)]
        return self.ttnn.pad, (x[0], ends, 0.0), self.memory(w)

    def concat(self, w, x):
        return self.ttnn.concat, (x,), {"dim": w.axis, **self.memory(w)}

    def typecast(self, w, x):
        return self.ttnn.typecast, (x[0], self.library.formats[w.format]), self.memory(w)

    def linear(self, w, x):
        options = {"bias": x[2], "compute_kernel_config": self.compute(w),
                   "dtype": self.library.formats[w.format], **self.memory(w)}
        if w.blocks:
            options["program_config"] = self.blocks(w)
        else:
            options["activation"] = self.library.activations[w.activation]
        return self.ttnn.linear, (x[0], x[1]), options

    def blocks(self, w):
        key = (w.blocks, w.grid_x, w.grid_y, w.k_block, w.subblock_m, w.subblock_n, w.core_m,
               w.core_n, w.activation)
        if key not in self.kept:
            options = {
                "compute_with_storage_grid_size": (w.grid_x, w.grid_y), "in0_block_w": w.k_block,
                "out_subblock_h": w.subblock_m, "out_subblock_w": w.subblock_n,
                "per_core_M": w.core_m, "per_core_N": w.core_n,
                "fused_activation": self.library.activations[w.activation]}
            if w.blocks == 1:
                self.kept[key] = self.ttnn.MatmulMultiCoreReuseMultiCastProgramConfig(
                    transpose_mcast=False, **options)
            else:
                self.kept[key] = self.ttnn.MatmulMultiCoreReuseMultiCast1DProgramConfig(
                    fuse_batch=True, mcast_in0=True, **options)
        return self.kept[key]

    def layer_norm(self, w, x):
        return self.ttnn.layer_norm, (x[0],), {
            "weight": x[1], "bias": x[2], "epsilon": w.scalar,
            "compute_kernel_config": self.compute(w), **self.memory(w)}

    def rms_norm(self, w, x):
        return self.ttnn.rms_norm, (x[0],), {
            "weight": x[1], "epsilon": w.scalar, "compute_kernel_config": self.compute(w),
            **self.memory(w)}

    def attention(self, w, x):
        key = ("attention", w.q_chunk, w.k_chunk)
        if key not in self.kept:
            self.kept[key] = self.ttnn.SDPAProgramConfig(
                compute_with_storage_grid_size=self.grid, q_chunk_size=w.q_chunk,
                k_chunk_size=w.k_chunk, exp_approx_mode=False)
        # The library's default is causal.
        return self.ttnn.transformer.scaled_dot_product_attention, (x[0], x[1], x[2]), {
            "is_causal": False, "attn_mask": x[3], "scale": w.scalar,
            "program_config": self.kept[key], "compute_kernel_config": self.compute(w),
            **self.memory(w)}

    def rotary(self, w, x):
        return self.ttnn.experimental.rotary_embedding, (x[0], x[1], x[2]), {
            "compute_kernel_config": self.compute(w), **self.memory(w)}

    def create_qkv_heads(self, w, x):
        return self.ttnn.experimental.nlp_create_qkv_heads, (x[0],), {
            "num_heads": w.heads, "num_kv_heads": w.kv_heads, "transpose_k_heads": False,
            **self.memory(w)}

    def concat_heads(self, w, x):
        return self.ttnn.experimental.nlp_concat_heads, (x[0],), self.memory(w)

    def embedding(self, w, x):
        return self.ttnn.embedding, (x[0], x[1]), {
            "layout": self.ttnn.TILE_LAYOUT, **self.memory(w)}

    def add(self, w, x):
        return self.ttnn.add, (x[0], x[1]), self.memory(w)

    def multiply(self, w, x):
        return self.ttnn.multiply, (x[0], (*x[1:], w.scalar)[0]), self.memory(w)

    multiply_scalar = multiply

    def copy(self, w, x):
        return self.ttnn.copy, (x[0], x[1]), {}


class Worker:
    def __init__(self, library, device_id, trace_region_bytes, fast_dispatch, fields, verbs):
        self.ttnn, self.library = library.ttnn, library
        options = {"trace_region_size": trace_region_bytes} if trace_region_bytes else {}
        self.device = self.ttnn.open_device(device_id=device_id, **options)
        self.fast_dispatch = fast_dispatch
        self.tensors, self.traces, self.trace, self.library_ns = {}, set(), None, 0
        self.closed = False
        self.calls = Calls(library, self.device)
        names, codes = zip(*(field.split(":") for field in fields.split()))
        self.message = collections.namedtuple("Message", (*names, "begin", "dims"))
        self.words = struct.Struct("<" + "".join(codes))
        self.verbs = [getattr(self, verb, None) or functools.partial(self.run, verb)
                      for verb in verbs.split()]
        self.files = TensorFiles(self.ttnn, library.formats, library.layouts)
        self.packed_upload = self.files.verify(self.values)

    def capabilities(self):
        grid, arch = self.calls.grid, str(self.device.arch()).rpartition(".")[2].lower()
        l1 = self.ttnn.get_memory_view(self.device, self.ttnn.BufferType.L1)
        return {"grid_x": grid.x, "grid_y": grid.y,
                "l1_bytes": L1_BYTES.get(arch, l1.total_bytes_per_bank),
                "packed_upload": int(self.packed_upload)}

    def timed(self, function, *args, **options):
        start = time.perf_counter_ns()
        try:
            return function(*args, **options)
        finally:
            self.library_ns += time.perf_counter_ns() - start

    def values(self, x):
        """Logical values as f32."""
        host = x.cpu()
        host = self.ttnn.to_dtype(host, self.ttnn.float32).to(self.ttnn.ROW_MAJOR_LAYOUT)
        found = memoryview(host.to_numpy())
        return found if found.c_contiguous else found.tobytes()

    def run(self, call, w, inputs):
        function, args, options = getattr(self.calls, call)(w, inputs)
        made = self.timed(function, *args, **options)
        if call == "copy":  # gives its target back, which has an id already
            return ()
        return made if isinstance(made, (tuple, list)) else (made,)

    def upload(self, w, _):
        made = self.timed(self.files.load, w.format, w.layout, tuple(w.dims), self.device)
        return (self.ttnn.to_memory_config(made, self.library.memories[1]) if w.memory else made,)

    def download(self, _, inputs):
        os.pwrite(SHARED, self.timed(self.values, inputs[0]), 0)
        return ()

    def begin_trace(self, *_):
        if not self.fast_dispatch:
            raise Unsupported("traces need fast dispatch, which this device does not run in")
        self.trace = self.timed(self.ttnn.begin_trace_capture, self.device, cq_id=0)
        return ()

    def end_trace(self, w, _):
        if self.trace is None:
            raise ValueError("no trace was begun")
        trace, self.trace = self.trace, None
        self.timed(self.ttnn.end_trace_capture, self.device, trace, cq_id=0)
        self.tensors[w.first] = trace
        self.traces.add(w.first)
        return self.replay_trace(w, (trace,))  # capturing records and does not run

    def replay_trace(self, _, inputs):
        self.timed(self.ttnn.execute_trace, self.device, inputs[0], cq_id=0, blocking=False)
        return ()

    def release(self, number):
        x = self.tensors.pop(number, None)
        if number in self.traces:
            self.traces.remove(number)
            self.timed(self.ttnn.release_trace, self.device, x)

    def close(self, *_):
        self.tensors.clear()
        self.timed(self.ttnn.close_device, self.device)
        self.closed = True
        return ()

    def describe(self, number, x):
        """Keeps an output under its number; what the library says it is."""
        if len(x.shape) < 4:
            x = self.ttnn.reshape(x, [1] * (4 - len(x.shape)) + list(x.shape))
        self.tensors[number] = x
        library = self.library
        return OUTPUT.pack(library.format_of[x.dtype], library.layout_of[x.layout],
                           library.buffer_of[x.memory_config().buffer_type], *x.shape)

    def tensor(self, number):
        if number and number not in self.tensors:
            raise ValueError(f"no tensor has the number {number}")
        return self.tensors[number] if number else None

    def answer(self, message):
        lists = memoryview(message)[self.words.size:].cast("q").tolist()
        w = self.message(*self.words.unpack_from(message), lists[:4], lists[4:8])
        outputs, fault, text, self.library_ns = [], OK, b"", 0
        try:
            for number in lists[8 + w.inputs:]:
                self.release(number)
            inputs = [self.tensor(number) for number in lists[8:8 + w.inputs]]
            made = self.verbs[w.verb](w, inputs)
            outputs = [self.describe(w.first + i, x) for i, x in enumerate(made)]
        except Unsupported as error:
            fault, text = BACKEND, str(error).encode()
        except Exception as error:
            fault = MEMORY if is_out_of_memory(error) else INTERNAL
            text = reason(error).encode()[:TEXT_BYTES_MAX]
        return b"".join((REPLY.pack(fault, self.library_ns, len(outputs)), *outputs, text))

    def serve(self, channel):
        while not self.closed and (message := channel.recv(MESSAGE_BYTES_MAX)):
            channel.send(self.answer(message))


def say(channel, **words):
    lines = (f"{name}={' '.join(str(value).split())}" for name, value in words.items())
    channel.send("\n".join(lines).encode()[:MESSAGE_BYTES_MAX])


def main():
    device_id, trace_region_bytes, fast_dispatch = map(int, sys.argv[2:5])
    channel = socket.socket(fileno=SOCKET)
    say(channel, python=platform.python_version())
    try:
        library = Library()
    except ModuleNotFoundError as error:
        return say(channel, fault="no_library" if error.name == "ttnn" else "library",
                   text=str(error))
    except Exception as error:
        return say(channel, fault="library", text=reason(error))
    if library.missing:
        return say(channel, fault="version", library=library.version,
                   text=", ".join(library.missing), known=", ".join(KNOWN_VERSIONS))
    try:
        worker = Worker(library, device_id, trace_region_bytes, fast_dispatch, *sys.argv[5:7])
        capabilities = worker.capabilities()
    except Exception as error:
        return say(channel, fault="device", library=library.version, text=reason(error))
    say(channel, library=library.version, known=int(library.version in KNOWN_VERSIONS),
        **capabilities)
    worker.serve(channel)
