"""Which array of openpi's JAX tree becomes which tensor of its PyTorch layout."""
import math
import string
from typing import NamedTuple

PALIGEMMA = "paligemma_with_expert.paligemma."
TOWER = PALIGEMMA + "model.vision_tower.vision_model."
LANGUAGE = PALIGEMMA + "model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert.model."


class Row(NamedTuple):
    """One array of the tree, and the tensors that it becomes.

    `axes` names the axes of the array, `order` those of a tensor: "l n d h" and "n*h d" say that
    tensor[n·H + h, d] of layer l is array[l, n, d, h]. A number before a letter is a factor ("1e"
    tells two axes of equal size apart), a number alone a fixed size; "2" deals its two halves out
    to two targets. A first axis b or l counts layers: {} in the targets' names.
    """
    path: str
    axes: str
    order: str
    targets: tuple

    @property
    def layered(self):
        return self.axes[0] in "bl"

    @property
    def lora(self):
        """Where openpi stores the two factors of a low-rank update, if there is one."""
        base = self.path[:-1] if self.path.endswith("/w") else self.path + "_"
        return base + "lora_a", base + "lora_b"

    def tensors(self, sizes):
        """Names and shapes, in the order in which arrange() returns them layer by layer."""
        shape = [size(axes, sizes) for axes in self.order.split()]
        for layer in range(sizes[self.axes[0]] if self.layered else 1):
            for target in self.targets:
                yield target.format(layer), shape

    def arrange(self, array):
        """The array, without its layer axis, in the order of each target."""
        axes = self.axes.split()[self.layered:]
        halves = [array]
        if axes[0] == "2":
            axes, halves = axes[1:], list(array)
        places = [axes.index(axis) for axis in self.order.replace("*", " ").split()]
        places += [i for i, axis in enumerate(axes) if axis == "1"]
        return [half.transpose(places) for half in halves]


def size(axes, sizes):
    """Columns of an axis such as "d", "3d", "2" or "n*h"; sizes has a value for each letter."""
    def factor(axis):
        digits = axis.rstrip(string.ascii_lowercase)
        return int(digits or 1) * (sizes[axis[len(digits):]] if axis != digits else 1)
    return math.prod(factor(axis) for axis in axes.split("*"))


def row(path, axes, order, *targets):
    return Row(path, axes, order, targets)


def dense(path, axes, target):
    """JAX multiplies from the left: its kernel is [in, out], PyTorch's weight [out, in]."""
    *layer, inputs, outputs = axes.split()
    yield row(path + "/kernel", axes, f"{outputs} {inputs}", target + ".weight")
    yield row(path + "/bias", " ".join([*layer, outputs]), outputs, target + ".bias")


def vision_rows():
    """Axes: b blocks, w width, r heads, a columns of a head, u mlp, t positions, d language."""
    image, layer = "PaliGemma/img/", TOWER + "encoder.layers.{}."
    block = image + "Transformer/encoderblock/"
    yield row(image + "embedding/kernel", "y x 3 w", "w 3 y x",
              TOWER + "embeddings.patch_embedding.weight")
    yield row(image + "embedding/bias", "w", "w", TOWER + "embeddings.patch_embedding.bias")
    yield row(image + "pos_embedding", "1 t w", "t w",
              TOWER + "embeddings.position_embedding.weight")
    for path, axes, target in (
            (block + "LayerNorm_0/", "b w", layer + "layer_norm1."),
            (block + "LayerNorm_1/", "b w", layer + "layer_norm2."),
            (image + "Transformer/encoder_norm/", "w", TOWER + "post_layernorm.")):
        yield row(path + "scale", axes, "w", target + "weight")
        yield row(path + "bias", axes, "w", target + "bias")
    attention, target = block + "MultiHeadDotProductAttention_0/", layer + "self_attn."
    for name in ("query", "key", "value"):
        projection = f"{target}{name[0]}_proj."
        yield row(f"{attention}{name}/kernel", "b w r a", "r*a w", projection + "weight")
        yield row(f"{attention}{name}/bias", "b r a", "r*a", projection + "bias")
    yield row(attention + "out/kernel", "b r a w", "w r*a", target + "out_proj.weight")
    yield row(attention + "out/bias", "b w", "w", target + "out_proj.bias")
    yield from dense(block + "MlpBlock_0/Dense_0", "b w u", layer + "mlp.fc1")
    yield from dense(block + "MlpBlock_0/Dense_1", "b u w", layer + "mlp.fc2")
    yield from dense(image + "head", "w d", PALIGEMMA + "model.multi_modal_projector.linear")


def gemma_rows(suffix, d, m, base, adaptive):
    """Axes: l layers, n heads, k key/value heads, h columns of a head; width and mlp as given.

    Both Gemmas share all but width and mlp, because they attend to each other layer by layer.
    """
    layers, layer = "PaliGemma/llm/layers/", base + "layers.{}."
    heads = layer + "self_attn."
    yield row(f"{layers}attn/q_einsum{suffix}/w", f"l n {d} h", f"n*h {d}", heads + "q_proj.weight")
    yield row(f"{layers}attn/kv_einsum{suffix}/w", f"l 2 k {d} h", f"k*h {d}",
              heads + "k_proj.weight", heads + "v_proj.weight")
    yield row(f"{layers}attn/attn_vec_einsum{suffix}/w", f"l n h {d}", f"{d} n*h",
              heads + "o_proj.weight")
    yield row(f"{layers}mlp{suffix}/gating_einsum", f"l 2 {d} {m}", f"{m} {d}",
              layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight")
    yield row(f"{layers}mlp{suffix}/linear", f"l {m} {d}", f"{d} {m}",
              layer + "mlp.down_proj.weight")
    for path, axes, target in (
            (f"{layers}pre_attention_norm{suffix}", "l ", layer + "input_layernorm"),
            (f"{layers}pre_ffw_norm{suffix}", "l ", layer + "post_attention_layernorm"),
            (f"PaliGemma/llm/final_norm{suffix}", "", base + "norm")):
        if adaptive:
            yield from dense(path + "/Dense_0", f"{axes}{d} 3{d}", target + ".dense")
        else:
            yield row(path + "/scale", axes + d, d, target + ".weight")


def model_rows(pi05):
    """Axes: d, m width and mlp of the language model, e, f of the expert, i actions, s state."""
    yield from vision_rows()
    # openpi's own files hold the token table under the name of the head that shares it.
    yield row("PaliGemma/llm/embedder/input_embedding", "v d", "v d", PALIGEMMA + "lm_head.weight")
    yield from gemma_rows("", "d", "m", LANGUAGE, False)
    yield from gemma_rows("_1", "e", "f", EXPERT, pi05)
    heads = {"action_in_proj": "i e", "action_out_proj": "e i"}
    if pi05:
        heads |= {"time_mlp_in": "1e e", "time_mlp_out": "1e e"}
    else:
        heads |= {"state_proj": "s e", "action_time_mlp_in": "2e e", "action_time_mlp_out": "1e e"}
    for name, axes in heads.items():
        yield from dense(name, axes, name)
