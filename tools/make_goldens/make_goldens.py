"""Writes golden folders: lerobot's PyTorch π0 / π0.5 run on synthetic weights, stage by stage.

    python make_goldens.py CASE.json OUT_DIR

CASE.json is a `config.json` as README.md describes it. OUT_DIR receives config.json,
inputs.safetensors (unless it is already there: then those inputs are used) and stages.safetensors.
"""

import argparse
import importlib
import json
import pathlib

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

import synthetic

PREFIX = "paligemma_with_expert."


def make_inputs(case):
    """Deterministic inputs; the last row's prompt is shorter, `absent_cameras` are masked."""
    seed, batch, side = case["weights"]["seed"], case["batch"], case["vision"]["image"]
    draw = lambda name, *shape: synthetic.uniform("input." + name, shape, seed)
    length, cameras = case["max_token_len"], case["cameras"]
    inputs = {f"image.{c}": draw(f"image.{c}", batch, 3, side, side) for c in range(cameras)}
    mask = np.ones((batch, cameras), np.uint8)
    mask[:, case.get("absent_cameras", [])] = 0
    valid = [max(1, length * 2 // 3 - b) for b in range(batch)]
    token_mask = (np.arange(length)[None] < np.array(valid)[:, None]).astype(np.uint8)
    tokens = ((draw("tokens", batch, length) + 1) / 2 * case["vlm"]["vocab"]).astype(np.int32)
    # Box-Muller on two uniform streams.
    shape = (batch, case["horizon"], case["action_dim"])
    u, v = ((draw(n, *shape).astype(np.float64) + 1) / 2 for n in ("noise.radius", "noise.angle"))
    noise = np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)
    inputs |= {
        "image_mask": mask,
        "tokens": tokens * token_mask,
        "token_mask": token_mask,
        "noise": noise.astype(np.float32),
    }
    if case["policy"] == "pi0":
        inputs["state"] = draw("state", batch, case["state_dim"])
    if "rtc" in case:
        inputs["rtc.leftover"] = draw("leftover", *case["rtc"]["leftover_shape"])
    return inputs


def policy_config(case):
    rtc = None
    if "rtc" in case:
        from lerobot.configs.types import RTCAttentionSchedule
        from lerobot.policies.rtc.configuration_rtc import RTCConfig

        rtc = RTCConfig(
            execution_horizon=case["rtc"]["execution_horizon"],
            max_guidance_weight=case["rtc"]["max_guidance_weight"],
            prefix_attention_schedule=RTCAttentionSchedule(case["rtc"]["schedule"]),
        )
    name = case["policy"]
    module = importlib.import_module(f"lerobot.policies.{name}.configuration_{name}")
    Config = module.PI05Config if name == "pi05" else module.PI0Config
    return Config(
        chunk_size=case["horizon"],
        n_action_steps=case["horizon"],
        dtype="float32",
        device="cpu",
        max_action_dim=case["action_dim"],
        max_state_dim=case["state_dim"],
        rtc_config=rtc,
        num_inference_steps=case["num_steps"],
        tokenizer_max_length=case["max_token_len"],
        image_resolution=(case["vision"]["image"],) * 2,
        min_period=case["min_period"],
        max_period=case["max_period"],
    )


def resized(network, sizes):
    """The class `network` of transformers, at other sizes than lerobot writes as literals between
    building a configuration and the network."""

    def construct(config):
        if hasattr(config, "vision_config"):
            v, here, vlm = config.vision_config, sizes["vision"], sizes["vlm"]
            v.hidden_size, v.num_attention_heads = here["width"], here["heads"]
            v.num_hidden_layers, v.intermediate_size = here["depth"], here["mlp"]
            v.patch_size, v.image_size = here["patch"], here["image"]
            v.projection_dim = config.projection_dim = config.hidden_size = vlm["width"]
            config._vocab_size = config.image_token_index = vlm["vocab"]
            config.text_config.vocab_size = vlm["vocab"]
        else:
            config.vocab_size = sizes["vlm"]["vocab"]
        return network(config=config)

    construct.original = network
    return construct


def resize(modeling, sizes):
    """lerobot's module `modeling` builds networks of these sizes from now on, in any release."""

    def gemma(variant):
        c = sizes["vlm" if variant == "gemma_2b" else "expert"]
        return modeling.GemmaConfig(
            width=c["width"],
            depth=c["depth"],
            mlp_dim=c["mlp"],
            num_heads=c["heads"],
            num_kv_heads=c["kv_heads"],
            head_dim=c["head_dim"],
        )

    modeling.get_gemma_config = gemma
    for name in (
        "PaliGemmaForConditionalGenerationWithPiGemma",
        "PiGemmaForCausalLM",
        "PaliGemmaForConditionalGeneration",
        "GemmaForCausalLM",
    ):
        if network := getattr(modeling, name, None):
            setattr(modeling, name, resized(getattr(network, "original", network), sizes))


def build(case):
    """lerobot's policy network at the sizes of `case`, holding the synthetic weights."""
    pi05 = case["policy"] == "pi05"
    package = f"lerobot.policies.{case['policy']}"
    modeling = importlib.import_module(f"{package}.modeling_{case['policy']}")
    resize(modeling, case)
    config = policy_config(case)
    network = (modeling.PI05Pytorch if pi05 else modeling.PI0Pytorch)(config).eval().float()
    depths = {tower: case[tower]["depth"] for tower in ("vision", "vlm", "expert")}
    with torch.no_grad():
        for name, parameter in network.named_parameters(remove_duplicate=False):
            values = synthetic.tensor(name, tuple(parameter.shape), case["weights"], depths)
            parameter.copy_(torch.from_numpy(values))
    return network, modeling


class Recorder:
    """Forward hooks that store every stage under its name in README.md."""

    def __init__(self, network, modeling, case):
        self.stages, self.camera, self.step, self.network = {}, 0, 0, network
        self.denoising = None  # arguments of the first step
        both = network.paligemma_with_expert
        tower = both.paligemma.model.vision_tower
        tower = getattr(tower, "vision_model", tower)
        self.hook(
            tower.embeddings.patch_embedding, "image.patch", lambda y: y.flatten(2).transpose(1, 2)
        )
        self.hook(tower.embeddings, "image.embed")
        self.hook(tower.post_layernorm, "image.post_norm")
        self.hook(both.paligemma.model.multi_modal_projector, "image.projector")
        for i, layer in enumerate(tower.encoder.layers):
            self.hook(layer, f"image.layer.{i}")
        first = tower.encoder.layers[0]
        for part, name in (
            (first.layer_norm1, "norm1"),
            (first.self_attn, "attn"),
            (first.layer_norm2, "norm2"),
            (first.mlp, "mlp"),
        ):
            self.hook(part, f"image.layer.0.{name}")
        self.gemma(both.paligemma.model.language_model, "vlm")
        self.gemma(both.gemma_expert.model, "step.0.expert")
        for name in ("embed_prefix", "embed_suffix", "denoise_step"):
            self.wrap(network, name)
        self.wrap(both, "embed_image")
        self.wrap(both, "forward")
        self.wrap(modeling, "create_sinusoidal_pos_embedding")

    def store(self, name, value):
        if name.startswith("image."):
            name = f"image.{self.camera}.{name[6:]}"
        if not (name.startswith("step.0.expert") and self.step > 0):
            value = value.detach()
            value = value.to(
                {torch.bool: torch.uint8, torch.int64: torch.int32}.get(value.dtype, value.dtype)
            )
            self.stages[name] = np.ascontiguousarray(value.numpy())

    def hook(self, module, name, shape=lambda y: y):
        def after(_, __, out):
            self.store(name, shape(out[0] if isinstance(out, tuple) else out))

        module.register_forward_hook(after)

    def gemma(self, model, tag):
        for i, layer in enumerate(model.layers):
            self.hook(layer, f"{tag}.layer.{i}")
        self.hook(model.norm, f"{tag}.norm")
        first, at = model.layers[0], f"{tag}.layer.0."
        for part, name in (
            (first.input_layernorm, "norm1"),
            (first.self_attn.q_proj, "q"),
            (first.self_attn.k_proj, "k"),
            (first.self_attn.v_proj, "v"),
            (first.self_attn, "attn"),
            (first.post_attention_layernorm, "norm2"),
            (first.mlp, "mlp"),
        ):
            self.hook(part, at + name)
        for part, name in (
            (first.input_layernorm, "gate1"),
            (first.post_attention_layernorm, "gate2"),
        ):

            def gate(_, __, out, name=name):
                if isinstance(out, tuple) and out[1] is not None:
                    self.store(at + name, out[1].reshape(out[1].shape[0], -1))

            part.register_forward_hook(gate)

    def wrap(self, owner, name):
        inner, after = getattr(owner, name), getattr(self, "after_" + name)

        def call(*args, **kwargs):
            out = inner(*args, **kwargs)
            after(out, kwargs)
            return out

        setattr(owner, name, call)

    def after_embed_image(self, _, __):
        self.camera += 1

    def after_embed_prefix(self, out, _):
        embed, mask = out[0], out[1]
        self.store("prefix.embed", embed)
        self.store("prefix.mask", mask)
        self.store("prefix.position", torch.cumsum(mask, 1) - 1)
        self.store("language.embed", embed[:, -self.network.config.tokenizer_max_length :])

    def after_forward(self, out, kwargs):
        if kwargs["inputs_embeds"][0] is None:
            return
        for i, layer in enumerate(out[1].layers):
            for name, rows in (("key", layer.keys), ("value", layer.values)):
                self.store(f"prefix.{name}.{i}", rows.transpose(1, 2).flatten(2))

    def after_create_sinusoidal_pos_embedding(self, out, _):
        self.store(f"step.{self.step}.time_embed", out.float())

    def after_embed_suffix(self, out, _):
        self.store(f"step.{self.step}.suffix", out[0])
        if out[3] is not None:
            self.store(f"step.{self.step}.cond", out[3])

    def after_denoise_step(self, out, kwargs):
        self.denoising = self.denoising or kwargs
        if self.step:
            self.store(f"step.{self.step - 1}.x", kwargs["x_t"])
        self.store(f"step.{self.step}.time", kwargs["timestep"])
        self.store(f"step.{self.step}.v", out)
        self.step += 1


def run(network, case, inputs, **guidance):
    t = {k: torch.from_numpy(v.copy()) for k, v in inputs.items()}
    images = [t[f"image.{c}"] for c in range(case["cameras"])]
    masks = list(t["image_mask"].bool().unbind(1))
    state = [t["state"]] if case["policy"] == "pi0" else []
    with torch.no_grad():
        return network.sample_actions(
            images,
            masks,
            t["tokens"].long(),
            t["token_mask"].bool(),
            *state,
            noise=t["noise"],
            num_steps=case["num_steps"],
            **guidance,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    case = json.loads(options.case.read_text())
    options.out.mkdir(parents=True, exist_ok=True)
    stored = options.out / "inputs.safetensors"
    inputs = load_file(stored) if stored.exists() else make_inputs(case)

    torch.manual_seed(0)
    network, modeling = build(case)
    stages, guidance = {}, {}
    if "rtc" in case:
        from lerobot.policies.rtc.modeling_rtc import RTCProcessor

        network.rtc_processor = RTCProcessor(network.config.rtc_config)
        stages["actions.without_rtc"] = run(network, case, inputs).numpy()
        rtc = case["rtc"]
        stages["rtc.weights"] = network.rtc_processor.get_prefix_weights(
            rtc["inference_delay"],
            min(rtc["execution_horizon"], rtc["leftover_shape"][1]),
            case["horizon"],
        ).numpy()
        guidance = {
            "inference_delay": rtc["inference_delay"],
            "execution_horizon": rtc["execution_horizon"],
            "prev_chunk_left_over": torch.from_numpy(inputs["rtc.leftover"].copy()),
        }
    denoise_step = network.denoise_step
    recorder = Recorder(network, modeling, case)
    actions = run(network, case, inputs, **guidance)
    recorder.store("actions", actions)
    recorder.store(f"step.{case['num_steps'] - 1}.x", actions)

    for t in case.get("velocity_times", []):
        time = torch.full_like(recorder.denoising["timestep"], t)
        noise = torch.from_numpy(inputs["noise"].copy())
        with torch.no_grad():
            velocity = denoise_step(**recorder.denoising | {"x_t": noise, "timestep": time})
        stages[f"velocity.{t}"] = velocity.numpy()
    later = f"step.{case['num_steps']}."  # what these calls recorded
    recorder.stages = {k: v for k, v in recorder.stages.items() if not k.startswith(later)}

    (options.out / "config.json").write_text(json.dumps(case, indent=1) + "\n")
    save_file(inputs, stored)
    save_file(recorder.stages | stages, options.out / "stages.safetensors")
    print(f"{options.out}: {len(recorder.stages | stages)} stages, actions std {actions.std():.3f}")


if __name__ == "__main__":
    main()
