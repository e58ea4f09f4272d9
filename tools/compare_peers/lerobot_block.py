"""One block of measurements in PyTorch: a JSON object as the last line of standard output.

    lerobot_block.py CASE PRECISION THREADS CALLS [compile]
    lerobot_block.py products PRECISION THREADS CALLS

CASE: JSON, sizes as make_goldens reads them. With `compile`, torch.compile compiles
the parts of the network that take the time.
"""

import contextlib
import json
import pathlib
import resource
import statistics
import sys
import time

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "make_goldens"))
import make_goldens  # noqa: E402

# lerobot's name of the precision, torch's type.
PRECISIONS = {"bf16": ("bfloat16", torch.bfloat16), "f32": ("float32", torch.float32)}

PRODUCT_ROWS = (816, 768, 50, 1)
PRODUCT_WEIGHTS = (  # columns in, out
    (1152, 4304),
    (4304, 1152),
    (2048, 16384),
    (16384, 2048),
    (1024, 4096),
    (2048, 2560),
)


@contextlib.contextmanager
def parameters_without_memory():
    """Modules built inside have parameters on the meta device, but real buffers (rotary tables)."""
    register = torch.nn.Module.register_parameter

    def register_on_meta(module, name, parameter):
        if parameter is not None:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def allocate(network):
    """Gives every parameter its memory, once and in its final type, and random values."""
    # Speed does not depend on the values as long as none is a denormal or NaN. One block of normal
    # numbers, repeated, is written as fast as memory allows; drawing 3e9 of them takes minutes.
    block = 0.02 * torch.randn(1 << 20)
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                values = torch.empty_like(parameter, device="cpu")
                for piece in values.view(-1).split(block.numel()):
                    piece.copy_(block[: piece.numel()])
                module._parameters[name] = torch.nn.Parameter(values, requires_grad=False)
                # No two equal: OpenVINO keeps equal weights once, which is faster than real ones.
                block = block.roll(1009)


def build(case, precision):
    """lerobot's network as make_goldens builds it, in the types that `dtype=` would give it."""
    make_goldens.synthetic.tensor = lambda name, shape, *_: np.zeros(shape, np.float32)  # unread
    with parameters_without_memory():
        network, _ = make_goldens.build(case)
        both = network.paligemma_with_expert
        both.to_bfloat16_for_selected_params(PRECISIONS[precision][0])
    # Two tables of 257152 rows that no action needs; lerobot keeps them: 3 GB in float32.
    both.paligemma.lm_head = both.gemma_expert.lm_head = None
    allocate(network)
    return network


def compile_parts(network):
    """The vision tower of a camera, the prefix and a denoising step, each compiled at its call."""
    both = network.paligemma_with_expert
    both.embed_image = torch.compile(both.embed_image, dynamic=False)
    both.forward = torch.compile(both.forward, dynamic=False)
    network.denoise_step = torch.compile(network.denoise_step, dynamic=False)


def measure_calls(case, precision, calls, compiled):
    network = build(case, precision)
    inputs = make_goldens.make_inputs(case)
    inputs["token_mask"][:] = 1  # a prompt without padding
    result = {}
    if compiled:
        expected = make_goldens.run(network, case, inputs)
        compile_parts(network)
        start = time.perf_counter()
        actions = make_goldens.run(network, case, inputs)
        result["compile_seconds"] = time.perf_counter() - start
        difference = torch.linalg.norm(actions - expected) / torch.linalg.norm(expected)
        result["relative_l2"] = difference.item()
    seconds = []
    for _ in range(1 + calls):
        start = time.perf_counter()
        actions = make_goldens.run(network, case, inputs)
        seconds.append(time.perf_counter() - start)
    if not torch.isfinite(actions).all():
        sys.exit("lerobot's actions are not finite: these times mean nothing")
    return result | {"seconds": seconds[1:], "warm_up_seconds": seconds[0]}


def measure_products(precision, calls):
    """GFLOP/s of y = x Wᵀ, [M, K] x [N, K], the median of `calls`."""
    gflops = []
    for columns, outputs in PRODUCT_WEIGHTS:
        weight = torch.randn(outputs, columns).to(PRECISIONS[precision][1])
        for rows in PRODUCT_ROWS:
            x = torch.randn(rows, columns).to(weight.dtype)
            seconds = []
            for _ in range(1 + calls):
                start = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                seconds.append(time.perf_counter() - start)
            flops = 2 * rows * columns * outputs
            gflops.append([rows, columns, outputs, flops / statistics.median(seconds[1:]) / 1e9])
    return {"products": gflops}


def main():
    what, precision, threads, calls = sys.argv[1:5]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    with torch.inference_mode():
        if what == "products":
            result = measure_products(precision, int(calls))
        else:
            compiled = "compile" in sys.argv[5:]
            result = measure_calls(json.loads(what), precision, int(calls), compiled)
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(result))


if __name__ == "__main__":
    main()
