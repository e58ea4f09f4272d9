"""Certifies a checkpoint: how far tendon's actions are from the plain reference's, or lerobot's.

    python certify.py CHECKPOINT [--precision bf16] [--lerobot] [--count 3] [--out certificate.json]

Needs `pip install tendon-pi0`; --lerobot also lerobot with π0's packages, and memory for both
models. `tendon serve CHECKPOINT --certificate certificate.json` then serves this model only.
"""
import argparse
import sys

import tendon_pi0


def lerobot_policy(checkpoint):
    """A function from observation and noise to the actions of lerobot's own policy."""
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.device, config.dtype = "cpu", "float32"
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    before, after = make_pre_post_processors(config, pretrained_path=checkpoint)

    def actions(observation, noise):
        batch = {"task": [observation["prompt"]]}
        for key, value in observation.items():
            if key.startswith("observation.images."):
                planes = torch.from_numpy(value.copy()).permute(2, 0, 1)
                batch[key] = planes[None].float() / 255
            elif key == "observation.state":
                batch[key] = torch.from_numpy(value)[None].float()
        with torch.no_grad():
            chunk = policy.predict_action_chunk(before(batch), noise=torch.tensor(noise)[None])
        return after(chunk)[0].numpy()

    return actions


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
    print(f"{said['model']} in {said['precision']} ({said['method']}) against {said['against']}")
    for action in said["actions"]:
        print(f"  {action['action']:24} max error {action['max_error']:.3g} of "
              f"{action['scale']:.3g}, relative L2 {action['relative_l2']:.1e}")
    print(f"{'passed' if said['passed'] else 'NOT PASSED'}: {given.out}")
    return not said["passed"]


if __name__ == "__main__":
    sys.exit(main())
