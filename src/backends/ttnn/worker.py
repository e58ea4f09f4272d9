"""Holds the ttnn library and one device, and answers the calls of tt_api.h over a socket.

A message or an answer is JSON (worker.cc) and the values of a tensor, as f32. Nothing here knows
about padding, masks or blocks: that is the mapping layer's.

Two processes: the keeper, which worker_process.cc starts, and below it the worker, which has the
library. The keeper ends everything when tendon or the worker ends. A simulator makes itself a
session, so that no process group reaches it, and outlives the worker that started it.
"""
import ctypes
import functools
import importlib
import importlib.metadata
import json
import math
import os
import platform
import select
import shutil
import signal
import socket
import struct
import sys
import types

SOCKET = 3  # its descriptor, see worker_process.cc
KNOWN_VERSIONS = ("0.81.1",)
TEXT_LETTERS_MAX = 4000
SIZES = struct.Struct("<2Q")  # of the JSON in bytes, and values
SEARCH_MS = 100
MEMORY, INTERNAL = 6, 70  # see include/tendon/error.h
# Per core. The library tells only what its allocator may use of it.
L1_BYTES = {"wormhole_b0": 1499136, "blackhole": 1572864}
# What is needed of the library.
NEEDED = """
    open_device close_device Tensor to_dtype to_device
    get_memory_view BufferType bfloat16 bfloat8_b float32 uint32 TILE_LAYOUT ROW_MAJOR_LAYOUT
    DRAM_MEMORY_CONFIG L1_MEMORY_CONFIG MathFidelity init_device_compute_kernel_config
    uint8 reshape slice pad concat permute typecast sin cos linear
    UnaryWithParam UnaryOpType.GELU_TANH UnaryOpType.SILU
    MatmulMultiCoreReuseMultiCastProgramConfig MatmulMultiCoreReuseMultiCast1DProgramConfig
    layer_norm rms_norm transformer.scaled_dot_product_attention SDPAProgramConfig
    experimental.rotary_embedding experimental.nlp_create_qkv_heads experimental.nlp_concat_heads
    embedding add multiply copy begin_trace_capture end_trace_capture execute_trace release_trace
    """.split()


class Refusal(Exception):
    """Why there is no device."""


def reason(error):
    """What the library said, without its C++ backtrace."""
    text = str(error)
    _, _, info = text.partition("info:\n")
    place = text.split("\n", 1)[0].split(" @ ")[0] if info else type(error).__name__
    text = (info or text).partition("backtrace:")[0]
    return f"{place}: {' '.join(text.split())}"[:TEXT_LETTERS_MAX]


def is_out_of_memory(error):
    text = str(error)
    return isinstance(error, MemoryError) or any(
        words in text for words in ("Out of Memory", "beyond max L1 size", "clash with L1 buffers"))


def has(root, path):
    return functools.reduce(lambda x, name: getattr(x, name, None), path.split("."), root)


def import_library(python):
    """The library and its version. `python`: the interpreter as the user named it."""
    interpreter = f"the interpreter {python} (Python {platform.python_version()})"
    try:
        ttnn = importlib.import_module("ttnn")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "ttnn":
            raise Refusal(f"{interpreter} has no ttnn; scripts/ttnn-sim makes an environment that "
                          "has; name its bin/python") from error
        raise Refusal(f"{interpreter} cannot import ttnn: {reason(error)}") from error
    try:
        version = importlib.metadata.version("ttnn")
    except importlib.metadata.PackageNotFoundError:
        version = getattr(ttnn, "__version__", "unknown")
    if missing := [name for name in NEEDED if not has(ttnn, name)]:
        raise Refusal(f"ttnn {version} of {python} lacks {', '.join(missing)}; install a version "
                      f"that tendon knows ({', '.join(KNOWN_VERSIONS)})")
    return ttnn, version


def calls_of(ttnn, device):
    """The calls of tt_api.h as calls of the library: w is the request, x its tensors."""
    activations = {"none": None, "gelu_tanh": ttnn.UnaryWithParam(ttnn.UnaryOpType.GELU_TANH),
                   "silu": ttnn.UnaryWithParam(ttnn.UnaryOpType.SILU)}
    fidelities = {name.lower(): getattr(ttnn.MathFidelity, name)
                  for name in ("LoFi", "HiFi2", "HiFi3", "HiFi4")}
    grid = device.compute_with_storage_grid_size()

    @functools.lru_cache(maxsize=None)
    def compute(fidelity, f32_accumulate):
        return ttnn.init_device_compute_kernel_config(
            device.arch(), math_fidelity=fidelities[fidelity], fp32_dest_acc_en=f32_accumulate,
            packer_l1_acc=False, math_approx_mode=False)

    def memory(w):
        return {"memory_config": w.memory}

    def kernel(w):
        return {"compute_kernel_config": compute(w.fidelity, w.f32_accumulate), **memory(w)}

    def program(w):
        b = w.blocks
        options = {"compute_with_storage_grid_size": (b.grid_x, b.grid_y), "in0_block_w": b.k_block,
                   "out_subblock_h": b.subblock_m, "out_subblock_w": b.subblock_n,
                   "per_core_M": b.core_m, "per_core_N": b.core_n,
                   "fused_activation": activations[w.activation]}
        if b.kind == "multicast_2d":
            return ttnn.MatmulMultiCoreReuseMultiCastProgramConfig(transpose_mcast=False, **options)
        return ttnn.MatmulMultiCoreReuseMultiCast1DProgramConfig(fuse_batch=True, mcast_in0=True,
                                                                 **options)

    def linear(w, x):
        cut = ({"activation": activations[w.activation]} if w.blocks.kind == "library" else
               {"program_config": program(w)})
        return ttnn.linear(x[0], x[1], bias=x[2], dtype=w.format, **cut, **kernel(w))

    def attention(w, x):
        chunks = ttnn.SDPAProgramConfig(compute_with_storage_grid_size=grid, exp_approx_mode=False,
                                        q_chunk_size=w.q_chunk, k_chunk_size=w.k_chunk)
        return ttnn.transformer.scaled_dot_product_attention(
            x[0], x[1], x[2], is_causal=False,  # the library's default is causal
            attn_mask=x[3], scale=w.scalar, program_config=chunks, **kernel(w))

    return {
        "reshape": lambda w, x: ttnn.reshape(x[0], w.dims),
        "slice": lambda w, x: ttnn.slice(x[0], w.begin, w.dims, **memory(w)),
        "pad": lambda w, x: ttnn.pad(
            x[0], [(0, to - n) for to, n in zip(w.dims, x[0].shape)], 0.0, **memory(w)),
        "concat": lambda w, x: ttnn.concat(x, dim=w.axis, **memory(w)),
        "permute": lambda w, x: ttnn.permute(x[0], (0, 2, 1, 3), **memory(w)),
        "typecast": lambda w, x: ttnn.typecast(x[0], w.format, **memory(w)),
        "linear": linear,
        "layer_norm": lambda w, x: ttnn.layer_norm(
            x[0], weight=x[1], bias=x[2], epsilon=w.scalar, **kernel(w)),
        "rms_norm": lambda w, x: ttnn.rms_norm(x[0], weight=x[1], epsilon=w.scalar, **kernel(w)),
        "attention": attention,
        "rotary": lambda w, x: ttnn.experimental.rotary_embedding(*x, **kernel(w)),
        "create_qkv_heads": lambda w, x: ttnn.experimental.nlp_create_qkv_heads(
            x[0], num_heads=w.heads, num_kv_heads=w.kv_heads, transpose_k_heads=False, **memory(w)),
        "concat_heads": lambda w, x: ttnn.experimental.nlp_concat_heads(x[0], **memory(w)),
        "embedding": lambda w, x: ttnn.embedding(*x, layout=ttnn.TILE_LAYOUT, **memory(w)),
        "add": lambda w, x: ttnn.add(*x, **memory(w)),
        "multiply": lambda w, x: ttnn.multiply(*x, **memory(w)),
        "multiply_scalar": lambda w, x: ttnn.multiply(x[0], w.scalar, **memory(w)),
        "sin": lambda w, x: ttnn.sin(x[0], **memory(w)),
        "cos": lambda w, x: ttnn.cos(x[0], **memory(w)),
        "copy": lambda _, x: [ttnn.copy(*x)][:0],  # its target has an id already
    }


class Device:
    """The library and one device. Has a method for what else tendon asks."""

    def __init__(self, python, number, trace_region_bytes, *_):
        ttnn, version = import_library(python)
        self.ttnn, self.numpy = ttnn, importlib.import_module("numpy")
        try:
            trace = int(trace_region_bytes)
            options = {"trace_region_size": trace} if trace else {}
            self.device = ttnn.open_device(device_id=int(number), **options)
            self.calls = calls_of(ttnn, self.device)
            grid = self.device.compute_with_storage_grid_size()
            l1, dram = self.views()
        except Exception as error:
            raise Refusal(f"ttnn {version} cannot open device {number}: {reason(error)}") from error
        arch = str(self.device.arch()).rpartition(".")[2].lower()
        self.caps = {"grid_x": grid.x, "grid_y": grid.y,
                     "l1_bytes": L1_BYTES.get(arch, l1.total_bytes_per_bank),
                     "dram_bytes": dram.num_banks * dram.total_bytes_per_bank,
                     "arch": arch, "version": version,
                     "note": "" if version in KNOWN_VERSIONS else
                             f"; ttnn {version} is not a version that tendon was tried with"}
        self.tensors, self.traces, self.trace, self.closed = {}, set(), None, False
        self.words = {
            "format": {"bf16": ttnn.bfloat16, "bfp8": ttnn.bfloat8_b, "u32": ttnn.uint32,
                       "f32": ttnn.float32, "u8": ttnn.uint8},
            "layout": {"tile": ttnn.TILE_LAYOUT, "row_major": ttnn.ROW_MAJOR_LAYOUT},
            "memory": {"dram": ttnn.DRAM_MEMORY_CONFIG, "l1": ttnn.L1_MEMORY_CONFIG}}
        self.formats, self.layouts = (
            {x: word for word, x in self.words[kind].items()} for kind in ("format", "layout"))
        self.buffers = {ttnn.BufferType.DRAM: "dram", ttnn.BufferType.L1: "l1"}

    def views(self):
        """What the allocator says of L1 and DRAM."""
        kinds = self.ttnn.BufferType
        return [self.ttnn.get_memory_view(self.device, kind) for kind in (kinds.L1, kinds.DRAM)]

    def memory(self, *_):
        """MiB in use: of DRAM, and of one core's L1."""
        l1, dram = self.views()
        self.values = struct.pack(
            "<2f", dram.num_banks * dram.total_bytes_allocated_per_bank / 2**20,
            l1.total_bytes_allocated_per_bank / 2**20)

    def upload(self, w, _):
        given, expected = len(w.values) // 4, math.prod(w.dims)
        if given != expected:
            raise ValueError(f"{given} values for {w.dims}, expected {expected}")
        kind = {self.ttnn.uint32: "u4", self.ttnn.uint8: "u1"}.get(w.format, "f4")
        values = self.numpy.frombuffer(w.values, "f4").astype(kind).reshape(w.dims)
        # On the host, which rounds once; on the device the library might convert otherwise.
        packed = self.ttnn.Tensor(values, w.format, None, w.layout)
        return self.ttnn.to_device(packed, self.device, memory_config=w.memory)

    def download(self, _, x):
        """Logical values as f32."""
        host = self.ttnn.to_dtype(x[0].cpu(), self.ttnn.float32).to(self.ttnn.ROW_MAJOR_LAYOUT)
        self.values = memoryview(host.to_numpy()).tobytes()

    def begin_trace(self, *_):
        self.trace = self.ttnn.begin_trace_capture(self.device, cq_id=0)

    def end_trace(self, w, _):
        if self.trace is None:
            raise ValueError("no trace was begun")
        trace, self.trace = self.trace, None
        self.ttnn.end_trace_capture(self.device, trace, cq_id=0)
        self.tensors[w.first] = trace
        self.traces.add(w.first)
        self.replay_trace(w, [trace])  # capturing records and does not run

    def replay_trace(self, _, x):
        self.ttnn.execute_trace(self.device, x[0], cq_id=0, blocking=False)

    def release(self, number):
        x = self.tensors.pop(number, None)
        if number in self.traces:
            self.traces.remove(number)
            self.ttnn.release_trace(self.device, x)

    def close(self, *_):
        self.tensors.clear()
        self.ttnn.close_device(self.device)
        self.closed = True

    # ---- Messages ----

    def describe(self, number, x):
        """Keeps an output under its number; what the library says it is."""
        if len(x.shape) < 4:
            x = self.ttnn.reshape(x, [1] * (4 - len(x.shape)) + list(x.shape))
        self.tensors[number] = x
        return {"format": self.formats[x.dtype], "layout": self.layouts[x.layout],
                "memory": self.buffers[x.memory_config().buffer_type], "dims": list(x.shape)}

    def tensor(self, number):
        if number and number not in self.tensors:
            raise ValueError(f"no tensor has the number {number}")
        return self.tensors[number] if number else None

    def answer(self, message, values):
        w = json.loads(message, object_hook=lambda fields: types.SimpleNamespace(**fields))
        self.values, w.values = b"", values
        for field, words in self.words.items():
            setattr(w, field, words[getattr(w, field)])
        try:
            for number in w.released:
                self.release(number)
            call = self.calls.get(w.call) or getattr(self, w.call)
            made = call(w, [self.tensor(number) for number in w.inputs])
            made = made if isinstance(made, (tuple, list)) else [] if made is None else [made]
            return {"outputs": [self.describe(w.first + i, x) for i, x in enumerate(made)]}
        except Exception as error:
            return {"fault": MEMORY if is_out_of_memory(error) else INTERNAL,
                    "text": reason(error)}


def run_worker(keeper, folder):
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: this process ends with its keeper
    if os.getppid() != keeper:
        return
    os.set_inheritable(SOCKET, False)  # compilers and simulators must not hold it open
    os.chdir(folder)  # the library writes its logs below the current folder, its compilers there
    os.putenv("TMPDIR", folder)
    sys.path[:] = filter(None, sys.path)  # what the library leaves in this folder is no module
    channel = socket.socket(fileno=SOCKET).makefile("rwb")

    def say(fields, values=b""):
        text = json.dumps(fields).encode()
        channel.write(SIZES.pack(len(text), len(values) // 4) + text + values)
        channel.flush()

    say({})  # this is a Python; the library may take minutes
    try:
        device = Device(*sys.argv[1:])
        say({"caps": device.caps})
    except Refusal as refusal:
        return say({"fault": str(refusal)})
    while not device.closed and (head := channel.read(SIZES.size)):
        text, values = SIZES.unpack(head)
        say(device.answer(channel.read(text), channel.read(4 * values)), device.values)


# ---- The keeper ----

def prctl(option, value):
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def children(parent):
    """(process, session) of every child."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                fields = f.read().rpartition(b")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent:
            yield int(name), int(fields[3])


def end_everything(worker):
    """Kills and reaps all that is left below this process; the exit code of the worker."""
    code = 0
    while True:
        for child, _ in children(os.getpid()):
            os.kill(child, signal.SIGKILL)
        try:
            child, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return code
        if child == worker:
            code = os.waitstatus_to_exitcode(status)


def wait_for_an_end(worker):
    """Returns when tendon or the worker has ended, or the simulator: without it the library would
    wait for ever."""
    poll, names = select.poll(), {SOCKET: "tendon", os.pidfd_open(worker): "worker"}
    for descriptor in names:  # of the socket only that its other end was closed
        poll.register(descriptor, 0 if descriptor == SOCKET else select.POLLIN)
    searching = sys.argv[4] == "simulator"
    while not (ready := poll.poll(SEARCH_MS if searching else None)):
        for child, session in children(worker):
            if child == session:  # compilers stay in the session of the worker
                descriptor = os.pidfd_open(child)
                names[descriptor] = f"simulator (process {child})"
                poll.register(descriptor, select.POLLIN)
                searching = False
    if (ended := names[ready[0][0]]).startswith("simulator"):
        print(f"the {ended} has ended", file=sys.stderr, flush=True)


def main():
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what is orphaned below comes to this process
    keeper, folder = os.getpid(), sys.argv[5]
    worker = os.fork()
    if worker == 0:
        return run_worker(keeper, folder)
    wait_for_an_end(worker)
    code = end_everything(worker)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(code if code >= 0 else 128 - code)


main()
