"""Certifies a checkpoint: how far tendon's actions are from the plain reference's, and lerobot's.

    python certify.py CHECKPOINT [--precision bf16] [--lerobot] [--count 3] [--out certificate.json]

Needs `pip install tendon-pi0`; --lerobot also lerobot with π0's packages, and memory for its
float32 model: they run one after the other. With `--certificate certificate.json`, `tendon serve`
starts with this model only.
"""
import argparse
import functools
import sys

import numpy as np
import tendon_pi0


class Hooks:
    """What lerobot's network computes on its way, in the words of tendon's certificates."""

    def __init__(self, network):
        self.stages = {}
        self._keep(network.paligemma_with_expert, "embed_image", "siglip")
        self._keep(network, "denoise_step", "velocity")
        self._keep(network, "sample_actions", "actions")

    def _keep(self, module, method, stage):
        whole = getattr(module, method)

        def kept(*args, **options):
            value = whole(*args, **options)
            seen = self.stages.setdefault(stage, [])
            if stage == "siglip" or not seen:  # every camera; the first Euler step
                seen.append(value[0].float().numpy())
            return value

        setattr(module, method, kept)

    def take(self):
        taken, self.stages = self.stages, {}
        return {stage: np.concatenate(values) for stage, values in taken.items()}


def lerobot_policy(checkpoint):
    """A function from observation and noise to what lerobot's own policy makes of them; it loads
    the policy when it is called."""
    @functools.cache
    def opened():
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        from safetensors import safe_open
        config = PreTrainedConfig.from_pretrained(checkpoint)
        config.device, config.dtype = "cpu", "float32"
        policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config).eval()
        # lerobot goes on with random weights where it could not load them.
        own = policy.model.action_out_proj.weight
        with safe_open(f"{checkpoint}/model.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.endswith("action_out_proj.weight")]
            if not names or not torch.equal(file.get_tensor(names[0]).float(), own):
                raise ValueError(f"lerobot has not loaded the weights of {checkpoint}")
        return policy, *make_pre_post_processors(config, pretrained_path=checkpoint), \
            Hooks(policy.model)

    import torch

    def answer(observation, noise):
        policy, before, after, hooks = opened()
        batch = {"task": [observation["prompt"]]}
        for key, value in observation.items():
            if key.startswith("observation.images."):
                planes = torch.from_numpy(value.copy()).permute(2, 0, 1)
                batch[key] = planes[None].float() / 255
            elif key == "observation.state":
                batch[key] = torch.from_numpy(value)[None].float()
        with torch.no_grad():
            chunk = policy.predict_action_chunk(before(batch), noise=torch.tensor(noise)[None])
        return {"actions": after(chunk)[0].numpy(), "stages": hooks.take()}

    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--lerobot", action="store_true")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--out", default="certificate.json")
    given = parser.parse_args()
    against = lerobot_policy(given.checkpoint) if given.lerobot else None
    said = tendon_pi0.certify(given.checkpoint, precision=given.precision, count=given.count,
                              against=against, against_name="lerobot's policy in float32",
                              out=given.out, html=given.out.removesuffix(".json") + ".html")
    print(f"{said['model']} in {said['precision']} ({said['method']})")
    for other in said["compared"]:
        print(f"against {other['against']}: {'passed' if other['passed'] else 'NOT PASSED'}")
        for stage in other["stages"]:
            print(f"  {stage['stage']:24} relative L2 {stage['relative_l2']:.1e}, at most "
                  f"{stage['relative_l2_max']:.1e}")
        for action in other["actions"]:
            print(f"  {action['action']:24} max error {action['max_error']:.3g} of "
                  f"{action['scale']:.3g}, relative L2 {action['relative_l2']:.1e}")
    print(f"{'passed' if said['passed'] else 'NOT PASSED'}: {given.out}")
    return not said["passed"]


if __name__ == "__main__":
    sys.exit(main())
