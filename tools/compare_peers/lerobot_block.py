"""One block of measurements in PyTorch: a JSON object as the last line of standard output.

    lerobot_block.py CASE PRECISION THREADS CALLS [compile]
    lerobot_block.py products PRECISION THREADS CALLS
    lerobot_block.py evaluate PRECISION THREADS CALLS NEW_FOLDER

CASE: JSON, sizes as make_goldens reads them. With `compile`, torch.compile compiles
the parts of the network that take the time. `evaluate` writes a full-size π0 checkpoint and runs
lerobot-eval with lerobot's policy and tendon's in turns.
"""

import contextlib
import importlib
import json
import pathlib
import resource
import shutil
import statistics
import sys
import time
import types
from unittest import mock

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools/make_goldens"), str(ROOT / "tools/train_demo")]
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

PUSHT = {"mean": 256.0, "std": 90.0}  # pixels
PUSHT_TASK = "push the blue square to the left edge"
PUSHT_CAMERA = "observation.images.top"


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
    # A prime length: no row of a matrix equals another. Products keep the spread of their inputs.
    block = torch.randn(1048583)
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                values = torch.empty_like(parameter, device="cpu")
                spread = (values.numel() / len(values)) ** -0.5 if values.ndim > 1 else 0.02
                for piece in values.view(-1).split(block.numel()):
                    piece.copy_(spread * block[: piece.numel()])
                module._parameters[name] = torch.nn.Parameter(values, requires_grad=False)
                # No two equal: OpenVINO keeps equal weights once, which is faster than real ones.
                block = block.roll(1009)
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.fill_(1)  # else the pictures hardly matter


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


def apart(got, expected):
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def evaluate_in_turns(own, folder, out, *options):
    """lerobot-eval in gym-pusht with the policy type "tendon", the checkpoint `folder` and
    `options`. `own`, lerobot's policy between its processors, answers each observation before.
    Per chunk: wall and CPU seconds of both, and the relative L2 between their actions."""
    import lerobot_policy_tendon
    from lerobot.scripts import lerobot_eval

    whole = lerobot_policy_tendon.TendonPolicy.predict_action_chunk
    chunks = []

    def both(policy, batch, **_):
        rows = batch["observation.state"].shape[0]
        config = own.policy.config
        noise = torch.randn(rows, config.chunk_size, config.max_action_dim)
        clocks = [(time.perf_counter(), time.process_time())]
        with torch.no_grad():
            expected = own.after(
                own.policy.predict_action_chunk(
                    own.before({**batch, "task": [PUSHT_TASK] * rows}), noise=noise
                )
            )
        clocks.append((time.perf_counter(), time.process_time()))
        got = whole(policy, batch, noise=noise)
        clocks.append((time.perf_counter(), time.process_time()))
        (theirs, their_cpu), (ours, our_cpu) = np.diff(clocks, axis=0).tolist()
        # The robot's units have a mean beside which differences look small.
        distance = apart(got.numpy() - PUSHT["mean"], expected.numpy() - PUSHT["mean"])
        chunks.append(
            {"lerobot_s": theirs, "tendon_s": ours, "relative_l2": distance}
            | {"lerobot_cpu_s": their_cpu, "tendon_cpu_s": our_cpu}
        )
        print(f"chunk {len(chunks)}: lerobot {theirs:.4g} s, tendon {ours:.4g} s", file=sys.stderr)
        return got

    arguments = ["lerobot-eval", "--policy.type=tendon", f"--policy.checkpoint={folder}"]
    arguments += [f"--policy.default_prompt={PUSHT_TASK}", "--env.type=pusht"]
    arguments += [f'--policy.rename_map={{"observation.image": "{PUSHT_CAMERA}"}}']
    arguments += ["--eval.use_async_envs=false", f"--output_dir={out}", *options]
    with mock.patch.object(lerobot_policy_tendon.TendonPolicy, "predict_action_chunk", both):
        with mock.patch.object(sys, "argv", arguments):
            lerobot_eval.main()
    return chunks


def filled_policy(policy, config, fill):
    """lerobot's PI0Policy or PI05Policy, whose network has no memory until `fill` gives it some."""
    modeling = importlib.import_module(f"lerobot.policies.{policy}.modeling_{policy}")
    network_class = getattr(modeling, f"{policy.upper()}Pytorch")

    def filled(config, **options):
        with parameters_without_memory():
            network = network_class(config, **options)
        fill(network)
        return network

    with mock.patch.object(modeling, network_class.__name__, filled):
        return getattr(modeling, f"{policy.upper()}Policy")(config)


def full_size_policy(precision, folder):
    """lerobot's PI0Policy for gym-pusht with random weights between its processors, and the same
    checkpoint in `folder`."""
    import demonstrations
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.pi0 import configuration_pi0

    def allocated(network):
        both = network.paligemma_with_expert
        both.paligemma.lm_head = both.gemma_expert.lm_head = None  # see build
        allocate(network)

    pair = {key: torch.full((2,), value) for key, value in PUSHT.items()}
    config = configuration_pi0.PI0Config(
        input_features={
            PUSHT_CAMERA: PolicyFeature(FeatureType.VISUAL, (3, 224, 224)),
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        dtype=PRECISIONS[precision][0],
        device="cpu",
        push_to_hub=False,
    )
    policy = filled_policy("pi0", config, allocated)
    tokenizer = ROOT / "assets/demo/pi0/tokenizer"
    before, after = demonstrations.make_processors(
        "pi0",
        config,
        {"observation.state": pair, "action": pair},
        demonstrations.PaddedTokenizer((tokenizer / "tokenizer.model").read_bytes()),
    )
    for part in (policy, before, after):
        part.save_pretrained(folder)
    shutil.copytree(tokenizer, folder / "tokenizer")
    return types.SimpleNamespace(policy=policy, before=before, after=after)


def measure_evaluation(precision, threads, calls, folder):
    own = full_size_policy(precision, folder)
    steps = own.policy.config.n_action_steps
    options = [f"--policy.precision={precision}", f"--policy.threads={threads}"]
    options += [f"--policy.n_action_steps={steps}", f"--env.episode_length={(1 + calls) * steps}"]
    options += ["--eval.n_episodes=1", "--eval.batch_size=1"]
    return {"chunks": evaluate_in_turns(own, folder, folder / "evaluation", *options)}


def main():
    what, precision, threads, calls = sys.argv[1:5]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    with torch.inference_mode():
        if what == "products":
            result = measure_products(precision, int(calls))
        elif what == "evaluate":
            folder = pathlib.Path(sys.argv[5])
            result = measure_evaluation(precision, int(threads), int(calls), folder)
        else:
            compiled = "compile" in sys.argv[5:]
            result = measure_calls(json.loads(what), precision, int(calls), compiled)
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(result))


if __name__ == "__main__":
    main()
