"""Holds the ttnn library and one device, and answers the calls of tt_api.h over a socket.

Started by worker_keeper.py. Messages are fixed little-endian structs (worker_protocol.h), one per
packet; tensors travel through a shared memory file that tendon sizes. Nothing here knows about
padding, masks or blocks: that is the mapping layer's.
"""
import collections
import importlib
import importlib.metadata
import os
import platform
import socket
import struct
import sys
import time

from worker_files import SHARED, TensorFiles

PROTOCOL = 1
KNOWN_VERSIONS = ("0.81.1",)
SOCKET = 4  # its descriptor, see worker_process.cc
MESSAGE_BYTES_MAX = 1 << 16
TEXT_BYTES_MAX = 4000
# Per core. The library tells only what its allocator may use of it.
L1_BYTES = {"wormhole_b0": 1499136, "blackhole": 1572864}

Wire = collections.namedtuple("Wire", """
    verb call format layout memory activation fidelity f32_accumulate blocks axis scalar
    first inputs released b0 b1 b2 b3 d0 d1 d2 d3 heads kv_heads
    grid_x grid_y k_block subblock_m subblock_n core_m core_n q_chunk k_chunk""")
REQUEST = struct.Struct("<8BB3xifIII4q4q2q7q2q")
REPLY = struct.Struct("<BBHIq")
OUTPUT = struct.Struct("<IBBBx4q")
OK, ILLEGAL, OUT_OF_MEMORY, UNSUPPORTED = range(4)

VERBS = ("run", "upload", "download", "begin_trace", "end_trace", "replay_trace",
         "release_trace", "release", "close")
CLOSE = VERBS.index("close")

# What every session needs of the library, and what each call needs, in the order of tt_api.h.
NEEDED = ("open_device close_device dump_tensor load_tensor zeros Tensor reshape to_dtype"
          " to_memory_config get_memory_view BufferType bfloat16 bfloat8_b float32 uint32"
          " TILE_LAYOUT ROW_MAJOR_LAYOUT DRAM_MEMORY_CONFIG L1_MEMORY_CONFIG MathFidelity"
          " init_device_compute_kernel_config").split()
CALLS = {
    "reshape": "reshape", "slice": "slice", "pad": "pad", "concat": "concat",
    "typecast": "typecast",
    "linear": "linear UnaryWithParam UnaryOpType.GELU_TANH UnaryOpType.SILU"
              " MatmulMultiCoreReuseMultiCastProgramConfig"
              " MatmulMultiCoreReuseMultiCast1DProgramConfig",
    "layer_norm": "layer_norm", "rms_norm": "rms_norm",
    "attention": "transformer.scaled_dot_product_attention SDPAProgramConfig",
    "rotary": "experimental.rotary_embedding",
    "create_qkv_heads": "experimental.nlp_create_qkv_heads",
    "concat_heads": "experimental.nlp_concat_heads",
    "embedding": "embedding", "add": "add", "multiply": "multiply",
    "multiply_scalar": "multiply", "copy": "copy",
}
TRACES = "begin_trace_capture end_trace_capture execute_trace release_trace".split()


class Unsupported(Exception):
    """This version of the library, or this device, has no such call."""


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
        self.missing = {call: [name for name in needs.split() if attribute(ttnn, name) is None]
                        for call, needs in CALLS.items()}
        self.missing["trace"] = [name for name in TRACES if attribute(ttnn, name) is None]
        self.basics_missing = [name for name in NEEDED if attribute(ttnn, name) is None]
        if self.basics_missing:
            return
        self.formats = (ttnn.bfloat16, ttnn.bfloat8_b, ttnn.uint32)
        self.layouts = (ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT)
        self.memories = (ttnn.DRAM_MEMORY_CONFIG, ttnn.L1_MEMORY_CONFIG)
        self.fidelities = (ttnn.MathFidelity.HiFi2, ttnn.MathFidelity.HiFi4)
        buffers = (ttnn.BufferType.DRAM, ttnn.BufferType.L1)
        self.format_of, self.layout_of, self.buffer_of = (
            {name: i for i, name in enumerate(names)}
            for names in (self.formats, self.layouts, buffers))
        self.activations = [None]
        if not self.missing["linear"]:
            self.activations += [ttnn.UnaryWithParam(ttnn.UnaryOpType.GELU_TANH),
                                 ttnn.UnaryWithParam(ttnn.UnaryOpType.SILU)]

    def all_missing(self):
        return sorted(set(self.basics_missing).union(*self.missing.values()))


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

    def format_and_memory(self, w):
        return {"dtype": self.library.formats[w.format], **self.memory(w)}

    def reshape(self, w, x):
        return self.ttnn.reshape, (x[0], [w.d0, w.d1, w.d2, w.d3]), {}

    def slice(self, w, x):
        begin, end = [w.b0, w.b1, w.b2, w.b3], [w.d0, w.d1, w.d2, w.d3]
        return self.ttnn.slice, (x[0], begin, end), self.memory(w)

    def pad(self, w, x):
        ends = [(0, to - n) for to, n in zip((w.d0, w.d1, w.d2, w.d3), x[0].shape)]
        return self.ttnn.pad, (x[0], ends, w.scalar), self.memory(w)

    def concat(self, w, x):
        return self.ttnn.concat, (x,), {"dim": w.axis, **self.memory(w)}

    def typecast(self, w, x):
        return self.ttnn.typecast, (x[0], self.library.formats[w.format]), self.memory(w)

    def linear(self, w, x):
        options = {"bias": x[2], "compute_kernel_config": self.compute(w),
                   **self.format_and_memory(w)}
        if w.blocks:
            options["program_config"] = self.blocks(w)
        else:
            options["activation"] = self.library.activations[w.activation]
        return self.ttnn.linear, (x[0], x[1]), options

    def blocks(self, w):
        key = w[24:31] + (w.blocks, w.activation)
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
            "layout": self.ttnn.TILE_LAYOUT, **self.format_and_memory(w)}

    def add(self, w, x):
        return self.ttnn.add, (x[0], x[1]), self.format_and_memory(w)

    def multiply(self, w, x):
        return self.ttnn.multiply, (x[0], (*x[1:], w.scalar)[0]), self.format_and_memory(w)

    multiply_scalar = multiply

    def copy(self, w, x):
        return self.ttnn.copy, (x[0], x[1]), {}


class Worker:
    def __init__(self, library, device_id, trace_region_bytes, fast_dispatch):
        self.ttnn, self.library = library.ttnn, library
        options = {"trace_region_size": trace_region_bytes} if trace_region_bytes else {}
        self.device = self.ttnn.open_device(device_id=device_id, **options)
        self.fast_dispatch = fast_dispatch
        self.tensors, self.trace, self.library_ns = {}, None, 0
        self.calls = Calls(library, self.device)
        self.prepare = [(call, getattr(self.calls, call)) for call in CALLS]
        self.verbs = [getattr(self, verb) for verb in VERBS]
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

    def run(self, w, inputs):
        call, prepare = self.prepare[w.call]
        if self.library.missing[call]:
            raise Unsupported(f"ttnn {self.library.version} has no "
                              f"{', '.join(self.library.missing[call])}, which {call} needs")
        function, args, options = prepare(w, inputs)
        made = self.timed(function, *args, **options)
        if call == "copy":  # gives its target back, which has an id already
            return ()
        return made if isinstance(made, (tuple, list)) else (made,)

    def upload(self, w, _):
        dims = (w.d0, w.d1, w.d2, w.d3)
        made = self.timed(self.files.load, w.format, w.layout, dims, self.device)
        return (self.ttnn.to_memory_config(made, self.library.memories[1]) if w.memory else made,)

    def download(self, _, inputs):
        os.pwrite(SHARED, self.timed(self.values, inputs[0]), 0)
        return ()

    def begin_trace(self, *_):
        if self.library.missing["trace"]:
            raise Unsupported(f"ttnn {self.library.version} has no "
                              f"{', '.join(self.library.missing['trace'])}")
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
        return self.replay_trace(w, (trace,))  # capturing records and does not run

    def replay_trace(self, _, inputs):
        self.timed(self.ttnn.execute_trace, self.device, inputs[0], cq_id=0, blocking=False)
        return ()

    def release_trace(self, w, inputs):
        self.timed(self.ttnn.release_trace, self.device, inputs[0])
        return ()

    def release(self, *_):
        return ()  # answer() has done it

    def close(self, *_):
        self.tensors.clear()
        self.timed(self.ttnn.close_device, self.device)
        return ()

    def describe(self, number, x):
        """Keeps an output under its number; what the library says it is."""
        if len(x.shape) < 4:
            x = self.ttnn.reshape(x, [1] * (4 - len(x.shape)) + list(x.shape))
        self.tensors[number] = x
        library = self.library
        return OUTPUT.pack(number, library.format_of[x.dtype], library.layout_of[x.layout],
                           library.buffer_of[x.memory_config().buffer_type], *x.shape)

    def tensor(self, number):
        if number and number not in self.tensors:
            raise ValueError(f"no tensor has the number {number}")
        return self.tensors[number] if number else None

    def answer(self, message):
        w = Wire._make(REQUEST.unpack_from(message))
        numbers = memoryview(message)[REQUEST.size:].cast("I").tolist()
        for number in numbers[w.inputs:]:
            self.tensors.pop(number, None)
        outputs, status, text, self.library_ns = [], OK, b"", 0
        try:
            inputs = [self.tensor(number) for number in numbers[:w.inputs]]
            made = self.verbs[w.verb](w, inputs)
            outputs = [self.describe(w.first + i, x) for i, x in enumerate(made)]
        except Unsupported as error:
            status, text = UNSUPPORTED, str(error)
        except Exception as error:
            status = OUT_OF_MEMORY if is_out_of_memory(error) else ILLEGAL
            text = reason(error)
        text = text.encode()[:TEXT_BYTES_MAX] if text else b""
        head = REPLY.pack(status, len(outputs), 0, len(text), self.library_ns)
        return b"".join((head, *outputs, text))

    def serve(self, channel):
        while message := channel.recv(MESSAGE_BYTES_MAX):
            channel.send(self.answer(message))
            if message[0] == CLOSE:
                return


def say(channel, **words):
    lines = (f"{name}={' '.join(str(value).split())}" for name, value in words.items())
    channel.send("\n".join(lines).encode()[:MESSAGE_BYTES_MAX])


def main():
    device_id, trace_region_bytes, fast_dispatch = map(int, sys.argv[1:4])
    channel = socket.socket(fileno=SOCKET)
    say(channel, protocol=PROTOCOL, python=platform.python_version())
    try:
        library = Library()
    except ModuleNotFoundError as error:
        return say(channel, fault="no_library" if error.name == "ttnn" else "library",
                   text=str(error))
    except Exception as error:
        return say(channel, fault="library", text=reason(error))
    missing = library.all_missing()
    known = library.version in KNOWN_VERSIONS
    if library.basics_missing or (missing and not known):
        return say(channel, fault="version", library=library.version, text=", ".join(missing),
                   known=", ".join(KNOWN_VERSIONS))
    try:
        worker = Worker(library, device_id, trace_region_bytes, bool(fast_dispatch))
        capabilities = worker.capabilities()
    except Exception as error:
        return say(channel, fault="device", library=library.version, text=reason(error))
    say(channel, library=library.version, known=int(known), missing=", ".join(missing),
        **capabilities)
    worker.serve(channel)


main()
