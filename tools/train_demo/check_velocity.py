"""Checks network.py's velocity and loss against lerobot's own two paths, on random weights.

denoise_step at the demo's sizes; forward() with 8 heads, which lerobot writes there as a literal.
"""

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d

import network

META = {"image": 63, "cameras": ["top", "gripper"], "horizon": 10, "state_dim": 3, "action_dim": 3}
ROWS, DRAWS, VOCAB = 3, 4, 400


def random_batch(name, generator):
    length = network.TOKENS_MAX[name]
    count = torch.tensor([[length], [length // 2], [5]])
    batch = {
        "images": torch.randint(256, (ROWS, 2, 63, 63, 3), generator=generator).to(torch.uint8),
        "tokens": torch.randint(VOCAB, (ROWS, length), generator=generator),
        "token_mask": torch.arange(length)[None] < count,
        "actions": torch.randn(ROWS, 10, 3, generator=generator),
    }
    if name == "pi0":
        batch["state"] = torch.randn(ROWS, 3, generator=generator)
    return batch


def lerobot_inputs(policy, batch):
    pictures = batch["images"].float().div(255).permute(0, 1, 4, 2, 3)
    named = {f"observation.images.{c}": pictures[:, i] for i, c in enumerate(META["cameras"])}
    images, masks = policy._preprocess_images(named)
    state = [F.pad(batch["state"], (0, 2))] if "state" in batch else []
    return images, masks, batch["tokens"], batch["token_mask"], state


def lerobot_velocity(net, images, masks, tokens, token_mask, state, x_t, time):
    embs, pad, att = net.embed_prefix(images, masks, tokens, token_mask)
    both = net.paligemma_with_expert
    both.paligemma.model.language_model.config._attn_implementation = "eager"
    _, cache = both.forward(
        attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad, att)),
        position_ids=torch.cumsum(pad, 1) - 1,
        inputs_embeds=[embs, None],
        use_cache=True,
    )
    return net.denoise_step(*state, pad, cache, x_t, time)


def check(name, heads):
    generator = torch.Generator().manual_seed(heads)
    change = {"heads": heads, "head_dim": 104 // heads // 2 * 2}
    sizes = {"vlm": network.VLM | change, "expert": network.EXPERT | change}
    policy = network.build_policy(name, VOCAB, META, **sizes).eval()
    network.initialise(policy, generator)
    net, batch = policy.model, random_batch(name, generator)
    noise = torch.randn(ROWS * DRAWS, 10, 5, generator=generator)
    time = network.draw_times(ROWS, DRAWS, policy.config, generator)
    actions = F.pad(batch["actions"], (0, 2))
    *inputs, state = lerobot_inputs(policy, batch)
    with torch.no_grad():
        cache, mask, _, _ = network.prefix(
            net, torch.stack(inputs[0], 1), batch["tokens"], batch["token_mask"]
        )
        t = time[:, None, None]
        x_t = t * noise + (1 - t) * actions.repeat_interleave(DRAWS, 0)
        ours = network.velocity(net, cache, mask, state[0] if state else None, x_t, time)
        worst = 0.0
        for draw in range(DRAWS):
            at = torch.arange(ROWS) * DRAWS + draw
            theirs = lerobot_velocity(net, *inputs, state, x_t[at], time[at])
            worst = max(worst, (ours[at] - theirs).abs().max().item())
        loss = network.flow_loss(net, batch, noise, time)[0].item()
        print(f"{name}, {heads} heads: denoise_step {worst:.1e} of {ours.std():.2f}", end="")
        if heads == 8:
            each = [
                net.forward(*inputs, *state, actions, noise[i::DRAWS], time[i::DRAWS])[..., :3]
                for i in range(DRAWS)
            ]
            worst = max(worst, abs(torch.stack(each).mean().item() - loss))
            print(f", forward() {abs(torch.stack(each).mean().item() - loss):.1e} of {loss:.2f}")
        else:
            print()
    assert worst < 1e-5, worst


if __name__ == "__main__":
    for policy_name in ("pi0", "pi05"):
        for head_count in (network.VLM["heads"], 8):
            check(policy_name, head_count)
