"""Writes lerobot's network as three models, with the inputs of one call, into a folder.

    exported_parts.py CASE FOLDER KIND      CASE: JSON, sizes as make_goldens reads them

KIND, for OpenVINO: f32, int8-weights (weights compressed by NNCF) or int8-static (weights and the
inputs of products, quantised by NNCF with ranges measured on these inputs). For ONNX Runtime: onnx
(float32) or onnx-int8 (its quantize_dynamic). Models that are already in FOLDER are left alone. A
part is PART.KIND.xml or .onnx: `vision` maps pixels to image tokens, `prefix` image tokens and
embedded prompt to every layer's keys and values, `step` one step's inputs to the velocity.
"""

import ctypes
import gc
import json
import pathlib
import sys

import numpy as np
import openvino as ov
import openvino_block
import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.policies.pi_gemma import _gated_residual, layernorm_forward
from transformers.models.gemma.modeling_gemma import apply_rotary_pos_emb

import lerobot_block
from lerobot_block import make_goldens

SMALL_WIDTH = 512  # below it the golden's own weights are drawn, which takes long at full size
CALIBRATION_STEPS = 4


def project_and_rotate(layer, hidden, rotary):
    """Rotated queries and keys, and values: each [1, heads, rows, head_dim]."""
    attention = layer.self_attn
    q, k, v = (
        project(hidden).view(1, hidden.shape[1], -1, attention.head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return *apply_rotary_pos_emb(q, k, *rotary), v


def attend(layer, q, k, v, mask):
    """The heads that share keys become rows of one head: the keys are not copied for each."""
    _, heads, rows, head_dim = q.shape
    q = q.reshape(1, k.shape[1], -1, head_dim)
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=layer.self_attn.scaling
    )
    y = y.reshape(1, heads, rows, head_dim).transpose(1, 2).reshape(1, rows, -1)
    return layer.self_attn.o_proj(y)


def finish_layer(layer, hidden, gate, attended, condition):
    hidden = _gated_residual(hidden, attended, gate)
    normed, gate = layernorm_forward(layer.post_attention_layernorm, hidden, condition)
    return _gated_residual(hidden, layer.mlp(normed), gate)


class Vision(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.both = network.paligemma_with_expert

    def forward(self, pixels):
        return self.both.embed_image(pixels)


class Prefix(torch.nn.Module):
    def __init__(self, network, rows):
        super().__init__()
        self.model = network.paligemma_with_expert.paligemma.model.language_model
        self.rotary = self.model.rotary_emb(torch.zeros(1), torch.arange(rows)[None])

    def forward(self, image_tokens, text):
        hidden = torch.cat([image_tokens.flatten(0, 1)[None], text], 1)
        keys_and_values = []
        for layer in self.model.layers:
            normed, gate = layernorm_forward(layer.input_layernorm, hidden)
            q, k, v = project_and_rotate(layer, normed, self.rotary)
            keys_and_values += [k, v]
            attended = attend(layer, q, k, v, None)
            hidden = finish_layer(layer, hidden, gate, attended, None)
        return tuple(keys_and_values)


class Step(torch.nn.Module):
    """`time` is the sine and cosine embedding of the time, which needs float64, not the time."""

    def __init__(self, network, modeling, prefix_rows, example):
        super().__init__()
        modeling.create_sinusoidal_pos_embedding = lambda time, *_, **__: time
        self.network, self.model = network, network.paligemma_with_expert.gemma_expert.model
        self.state_inputs = len(example) - 2
        _, pad, groups, _ = network.embed_suffix(*example[2:], *example[:2])
        rows = pad.shape[1]
        self.rotary = self.model.rotary_emb(
            torch.zeros(1), torch.arange(prefix_rows, prefix_rows + rows)[None]
        )
        seen = torch.ones(1, rows, prefix_rows, dtype=torch.bool)
        seen = torch.cat([seen, make_att_2d_masks(pad, groups)], 2)
        config = self.model.config
        shared = config.num_attention_heads // config.num_key_value_heads
        mask = prepare_attention_masks_4d(seen).repeat(1, 1, shared, 1)
        self.mask = None if seen.all() else mask

    def forward(self, x, time, *others):
        state, past = others[: self.state_inputs], others[self.state_inputs :]
        hidden, _, _, condition = self.network.embed_suffix(*state, x, time)
        for i, layer in enumerate(self.model.layers):
            normed, gate = layernorm_forward(layer.input_layernorm, hidden, condition)
            q, k, v = project_and_rotate(layer, normed, self.rotary)
            k, v = torch.cat([past[2 * i], k], 2), torch.cat([past[2 * i + 1], v], 2)
            attended = attend(layer, q, k, v, self.mask)
            hidden = finish_layer(layer, hidden, gate, attended, condition)
        hidden, _ = layernorm_forward(self.model.norm, hidden, condition)
        return self.network.action_out_proj(hidden[:, -x.shape[1] :])


def free_memory():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def save_onnx(folder, part, module, example, outputs):
    """`example` maps the names of the inputs to tensors."""
    path = folder / f"{part}.onnx.onnx"
    if path.exists():
        return
    names = {"input_names": list(example), "output_names": outputs}
    distinct = tuple(tensor.clone() for tensor in example.values())  # one input each
    torch.onnx.export(module, distinct, path, **names, external_data=True)
    print(f"{path}: written", file=sys.stderr)


def save_openvino(folder, part, module, example, outputs):
    """`example` maps the names of the inputs to tensors."""
    path = folder / f"{part}.f32.xml"
    if path.exists():
        return
    shapes = [ov.PartialShape(list(tensor.shape)) for tensor in example.values()]
    model = ov.convert_model(module, example_input=tuple(example.values()), input=shapes)
    for ports, names in ((model.inputs, example), (model.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    partial = folder / f"{part}.partial.xml"
    ov.save_model(model, partial, compress_to_fp16=False)
    partial.with_suffix(".bin").rename(path.with_suffix(".bin"))
    partial.rename(path)
    print(f"{path}: written", file=sys.stderr)


def write_inputs(folder, case, network, inputs):
    """The inputs of one call, and what eager PyTorch computes from them if the network is small."""
    both = network.paligemma_with_expert
    tokens = torch.from_numpy(inputs["tokens"]).long()
    arrays = {
        "pixels": np.concatenate([inputs[f"image.{c}"] for c in range(case["cameras"])]),
        "text": both.embed_language_tokens(tokens).numpy(),
        "noise": inputs["noise"],
    }
    if case["policy"] == "pi0":
        arrays["state"] = inputs["state"]
    if case["vlm"]["width"] < SMALL_WIDTH or case.get("reference"):
        arrays["actions"] = make_goldens.run(network, case, inputs).numpy()
    (folder / "sizes.json").write_text(json.dumps(openvino_block.sizes(case)) + "\n")
    np.savez(folder / "inputs.npz", steps=case["num_steps"], **arrays)


def export(folder, case, save):
    """The three models in float32, by save_onnx or save_openvino. A part's weights are freed before
    the next is converted."""
    small = case["vlm"]["width"] < SMALL_WIDTH
    network = make_goldens.build(case)[0] if small else lerobot_block.build(case, "f32")
    modeling = sys.modules[type(network).__module__]
    inputs = make_goldens.make_inputs(case)
    inputs["token_mask"][:] = 1  # a prompt without padding
    write_inputs(folder, case, network, inputs)
    data = {name: torch.from_numpy(array) for name, array in np.load(folder / "inputs.npz").items()}
    vlm = network.paligemma_with_expert.paligemma.model
    vlm.language_model.embed_tokens = None
    example = {"pixels": data["pixels"]}
    save(folder, "vision", Vision(network), example, ["image_tokens"])
    vlm.vision_tower = vlm.multi_modal_projector = None
    free_memory()

    sizes = case["vlm"]
    patches = (case["vision"]["image"] // case["vision"]["patch"]) ** 2
    rows = case["cameras"] * patches + case["max_token_len"]
    names = [f"{name}.{i}" for i in range(sizes["depth"]) for name in ("key", "value")]
    image_tokens = torch.randn(case["cameras"], patches, sizes["width"])
    example = {"image_tokens": image_tokens, "text": data["text"]}
    save(folder, "prefix", Prefix(network, rows), example, names)
    network.paligemma_with_expert.paligemma = vlm = None
    free_memory()

    example = {"x": data["noise"], "time": torch.randn(1, case["expert"]["width"])}
    example |= {"state": data["state"]} if case["policy"] == "pi0" else {}
    step = Step(network, modeling, rows, list(example.values()))
    past = torch.randn(1, sizes["kv_heads"], rows, sizes["head_dim"])
    save(folder, "step", step, example | {name: past for name in names}, ["velocity"])


def quantise_onnx(folder):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for part in openvino_block.PARTS:
        path = folder / f"{part}.onnx-int8.onnx"
        if not path.exists():
            quantize_dynamic(
                folder / f"{part}.onnx.onnx",
                path,
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=True,
            )


def compress(folder):
    import nncf

    for part in openvino_block.PARTS:
        path = folder / f"{part}.int8-weights.xml"
        if not path.exists():
            model = ov.Core().read_model(folder / f"{part}.f32.xml")
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
            ov.save_model(model, path, compress_to_fp16=False)
            del model
            free_memory()


def calibration(folder, case):
    """Inputs of every part, from a call in float32 in which one part is loaded at a time."""
    data = dict(np.load(folder / "inputs.npz"))
    result = {"vision": [{"pixels": data["pixels"]}]}
    request = openvino_block.load(folder, "vision", "f32", 0)
    request.infer(result["vision"][0])
    tokens = request.get_output_tensor(0).data.copy()
    result["prefix"] = [{"image_tokens": tokens, "text": data["text"]}]
    request = openvino_block.load(folder, "prefix", "f32", 0)
    request.infer(result["prefix"][0])
    past = {
        name: request.get_tensor(name).data.copy()
        for name in (port.any_name for port in request.model_outputs)
    }
    request = openvino_block.load(folder, "step", "f32", 0)
    past |= {"state": data["state"]} if "state" in data else {}
    x, result["step"] = data["noise"], []
    for i in range(CALIBRATION_STEPS):
        time = openvino_block.time_embedding(case, 1 - i / CALIBRATION_STEPS)
        result["step"].append(past | {"x": x, "time": time})
        request.infer(result["step"][-1])
        x = x - request.get_output_tensor(0).data / CALIBRATION_STEPS
    return result


def quantise(folder, case):
    import nncf

    missing = [p for p in openvino_block.PARTS if not (folder / f"{p}.int8-static.xml").exists()]
    data = calibration(folder, case) if missing else {}
    free_memory()
    for part in missing:
        model = ov.Core().read_model(folder / f"{part}.f32.xml")
        model = nncf.quantize(
            model,
            nncf.Dataset(data[part]),
            subset_size=len(data[part]),
            model_type=nncf.ModelType.TRANSFORMER,
        )
        ov.save_model(model, folder / f"{part}.int8-static.xml", compress_to_fp16=False)
        del model
        free_memory()


def main():
    case, folder, kind = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for_onnx = kind.startswith("onnx")
    name = "{}.onnx.onnx" if for_onnx else "{}.f32.xml"
    if not all((folder / name.format(part)).exists() for part in openvino_block.PARTS):
        with torch.no_grad() if for_onnx else torch.inference_mode():
            export(folder, case, save_onnx if for_onnx else save_openvino)
    if kind == "int8-weights":
        compress(folder)
    elif kind == "int8-static":
        quantise(folder, case)
    elif kind == "onnx-int8":
        quantise_onnx(folder)


if __name__ == "__main__":
    main()
