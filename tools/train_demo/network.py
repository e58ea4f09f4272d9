"""lerobot's π0 / π0.5 policy at the demo's sizes, and its velocity for several noises at once."""

import importlib
import math
import pathlib
import sys

import torch
import torch.nn.functional as F
from lerobot.configs import FeatureType, PolicyFeature
from transformers.models.gemma.modeling_gemma import apply_rotary_pos_emb

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "make_goldens"))
import make_goldens

VISION = {"width": 72, "heads": 4, "patch": 9, "mlp": 220, "depth": 3}
VLM = {"width": 108, "mlp": 330, "heads": 4, "kv_heads": 1, "head_dim": 26, "depth": 4}
EXPERT = VLM | {"width": 76, "mlp": 230}
PADDED_DIM = 5  # of state and actions
STEPS = 5  # of the integration
TOKENS_MAX = {"pi0": 12, "pi05": 26}


def _modules(name):
    package = f"lerobot.policies.{name}"
    modeling = importlib.import_module(f"{package}.modeling_{name}")
    configuration = importlib.import_module(f"{package}.configuration_{name}")
    return modeling, configuration


def build_policy(name, vocab, meta, vision=VISION, vlm=VLM, expert=EXPERT):
    """PI0Policy or PI05Policy for the demonstrations that `meta` describes."""
    modeling, configuration = _modules(name)
    side = meta["image"]
    sizes = {"vision": vision | {"image": side}, "vlm": vlm | {"vocab": vocab}, "expert": expert}
    make_goldens.resize(modeling, sizes)  # lerobot knows two variants only
    picture = PolicyFeature(type=FeatureType.VISUAL, shape=(3, side, side))
    cameras = {f"observation.images.{c}": picture for c in meta["cameras"]}
    state = PolicyFeature(type=FeatureType.STATE, shape=(meta["state_dim"],))
    action = PolicyFeature(type=FeatureType.ACTION, shape=(meta["action_dim"],))
    Config, Policy = (
        (configuration.PI05Config, modeling.PI05Policy)
        if name == "pi05"
        else (configuration.PI0Config, modeling.PI0Policy)
    )
    config = Config(
        input_features=cameras | {"observation.state": state},
        output_features={"action": action},
        chunk_size=meta["horizon"],
        n_action_steps=meta["horizon"],
        max_state_dim=PADDED_DIM,
        max_action_dim=PADDED_DIM,
        num_inference_steps=STEPS,
        image_resolution=(side, side),
        tokenizer_max_length=TOKENS_MAX[name],
        dtype="float32",
        device="cpu",
        push_to_hub=False,
    )
    policy = Policy(config)
    # PyTorch's fused attention has a slow backward on the CPU.
    vision_tower(policy.model).config._attn_implementation = "eager"
    return policy


def _grid_waves(side, width):
    """Position table [side², width]: sines and cosines of the row and of the column."""
    quarter = width // 4
    rate = 0.5 * math.pi / 2 ** torch.linspace(0, 3, quarter)
    row, column = (
        (torch.arange(side * side) // side)[:, None] * rate,
        (torch.arange(side * side) % side)[:, None] * rate,
    )
    waves = [row.sin(), row.cos(), column.sin(), column.cos()]
    return torch.cat(waves + [torch.zeros(side * side, width - 4 * quarter)], dim=1)


@torch.no_grad()
def initialise(policy, generator):
    """Weights for a training from scratch: activations of size one, quiet residual branches."""
    net = policy.model
    depth = VLM["depth"]
    for name, module in net.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            fan_in = module.weight[0].numel()
            quiet = name.endswith(("o_proj", "down_proj", "out_proj", "fc2"))
            std = fan_in**-0.5 * ((2 * depth) ** -0.5 if quiet else 1)
            module.weight.normal_(0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    for name, module in net.named_modules():
        dense = getattr(module, "dense", None)  # scale, shift and gate of an adaptive norm
        if dense is not None:
            dense.weight.normal_(0, 0.02, generator=generator)
            dense.bias.zero_()
            dense.bias.chunk(3)[2].fill_(1)
    paligemma = net.paligemma_with_expert.paligemma.model
    table = paligemma.language_model.embed_tokens.weight  # multiplied by sqrt(width) when read
    table.normal_(0, table.shape[1] ** -0.5, generator=generator)
    places = vision_tower(net).embeddings.position_embedding.weight
    places.copy_(_grid_waves(int(places.shape[0] ** 0.5), places.shape[1]))


def vision_tower(net):
    tower = net.paligemma_with_expert.paligemma.model.vision_tower
    return getattr(tower, "vision_model", tower)


def _attend(q, k, v, mask):
    """Attention with one key/value head: the query heads are so many more rows of its queries."""
    batch, heads, rows, dim = q.shape
    assert k.shape[1] == 1
    scores = q.reshape(batch, heads * rows, dim) @ k[:, 0].transpose(1, 2)
    scores = scores.view(batch, heads, rows, -1) * dim**-0.5
    shares = scores.masked_fill(~mask, -1e9).float().softmax(-1).to(v.dtype)
    out = shares.view(batch, heads * rows, -1) @ v[:, 0]
    return out.view(batch, heads, rows, dim).transpose(1, 2).reshape(batch, rows, heads * dim)


def _heads(x, dim):
    return x.view(x.shape[0], x.shape[1], -1, dim).transpose(1, 2)


def _keys_values(layer, x, rotary):
    attention = layer.self_attn
    k = _heads(attention.k_proj(x), attention.head_dim)
    v = _heads(attention.v_proj(x), attention.head_dim)
    return apply_rotary_pos_emb(k, k, *rotary)[0], v


def _rest_of_layer(layer, x, normed, gate, k, v, mask, rotary, cond=None):
    """One Gemma layer from the attention on, given its keys and values."""
    attention = layer.self_attn
    q = _heads(attention.q_proj(normed), attention.head_dim)
    q = apply_rotary_pos_emb(q, q, *rotary)[0]
    y = attention.o_proj(_attend(q, k, v, mask))
    x = x + (y if gate is None else y * gate)
    normed, gate = layer.post_attention_layernorm(x, cond=cond)
    y = layer.mlp(normed)
    return x + (y if gate is None else y * gate)


class Teaching(torch.nn.Module):
    """Questions that only training asks: what lies under each patch, and where is the target? They
    make the small network look at colours, shapes and words long before actions would."""

    def __init__(self, generator):
        super().__init__()
        width = VLM["width"]
        self.kind = torch.nn.Linear(width, 7 + 4)
        self.target = torch.nn.Linear(width, 4)
        with torch.no_grad():
            for layer in (self.kind, self.target):
                layer.weight.normal_(0, width**-0.5, generator=generator)
                layer.bias.zero_()

    def loss(self, seen, prompt, batch):
        """`seen` [B,patches,W] embedded pictures, `prompt` [B,W] the last token, late."""
        colour, shape = self.kind(seen).split((7, 4), dim=-1)
        cross = F.cross_entropy(colour.flatten(0, 1), batch["colour"].flatten().long())
        cross = cross + F.cross_entropy(shape.flatten(0, 1), batch["shape"].flatten().long())
        return cross + F.smooth_l1_loss(self.target(prompt), batch["target"], beta=0.1)


def prefix(net, images, tokens, token_mask):
    """Keys and values of every layer, [B,1,P,d] each, which of the P rows count, the embedded
    pictures, and the last token of the prompt before the last layer."""
    both = net.paligemma_with_expert
    model = both.paligemma.model.language_model
    batch, cameras = images.shape[:2]
    seen = both.embed_image(images.flatten(0, 1))
    seen = seen.reshape(batch, cameras * seen.shape[1], -1)
    x = torch.cat([seen, both.embed_language_tokens(tokens)], dim=1)
    mask = torch.cat([token_mask.new_ones(batch, seen.shape[1]), token_mask], dim=1)
    rotary = model.rotary_emb(x, torch.cumsum(mask, 1) - 1)
    cache = []
    for i, layer in enumerate(model.layers):
        normed, gate = layer.input_layernorm(x)
        k, v = _keys_values(layer, normed, rotary)
        cache.append((k, v))
        if i + 1 < len(model.layers):  # of the last layer, only keys and values are read
            x = _rest_of_layer(layer, x, normed, gate, k, v, mask[:, None, None], rotary)
        if i + 2 == len(model.layers):
            last = mask.sum(1) - 1
            prompt = x[torch.arange(batch), last]
    return cache, mask, seen, prompt


def velocity(net, cache, mask, state, x_t, time):
    """What denoise_step returns, with gradients; rows of `x_t` are a multiple of the cache's."""
    draws = x_t.shape[0] // mask.shape[0]
    mask = mask.repeat_interleave(draws, 0)
    before = () if state is None else (state.repeat_interleave(draws, 0),)
    x, _, blocks, cond = net.embed_suffix(*before, x_t, time)
    rows = x.shape[1]
    block = torch.cumsum(blocks[0], 0)
    own = block[None, :] <= block[:, None]
    seen = torch.cat(
        [mask[:, None, None].expand(-1, 1, rows, -1), own.expand(x.shape[0], 1, rows, rows)], dim=3
    )
    model = net.paligemma_with_expert.gemma_expert.model
    place = mask.sum(1, keepdim=True) + torch.arange(rows)
    rotary = model.rotary_emb(x, place)
    for layer, (past_k, past_v) in zip(model.layers, cache, strict=True):
        normed, gate = layer.input_layernorm(x, cond=cond)
        k, v = _keys_values(layer, normed, rotary)
        k = torch.cat([past_k.repeat_interleave(draws, 0), k], dim=2)
        v = torch.cat([past_v.repeat_interleave(draws, 0), v], dim=2)
        x = _rest_of_layer(layer, x, normed, gate, k, v, seen, rotary, cond)
    x, _ = model.norm(x, cond=cond)
    return net.action_out_proj(x[:, -net.config.chunk_size :].float())


def flow_loss(net, batch, noise, time, teaching=None):
    """lerobot's loss over the real action dims, `noise` holding several draws per observation, and
    that of `teaching`."""
    draws = noise.shape[0] // batch["tokens"].shape[0]
    width = noise.shape[2]
    actions = batch["actions"]
    real = actions.shape[2]
    target = F.pad(actions, (0, width - real)).repeat_interleave(draws, 0)
    state = batch.get("state")
    if state is not None:
        state = F.pad(state, (0, width - state.shape[1]))
    t = time[:, None, None]
    images = batch["images"].float().div(255) * 2 - 1
    images = images.permute(0, 1, 4, 2, 3)
    cache, mask, seen, prompt = prefix(net, images, batch["tokens"], batch["token_mask"])
    v = velocity(net, cache, mask, state, t * noise + (1 - t) * target, time)
    loss = F.mse_loss(v[..., :real], (noise - target)[..., :real])
    return loss, teaching.loss(seen, prompt, batch) if teaching else torch.zeros(())


def draw_times(rows, draws, config, generator):
    """Beta(a, 1) times, one in each of `draws` equally likely stretches per observation."""
    assert config.time_sampling_beta_beta == 1
    u = (torch.rand(rows, draws, generator=generator) + torch.arange(draws)) / draws
    time = u ** (1 / config.time_sampling_beta_alpha)
    return (time * config.time_sampling_scale + config.time_sampling_offset).flatten()
