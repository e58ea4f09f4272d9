"""layouts.py SOURCE LAYOUT SIZE VERB FOLDER: checkpoints in their layouts, and what lerobot
answers with the weights of one; run by layouts_test.py in an environment with lerobot.

LAYOUT is POLICY-PRECISION, and -shards, -openpi or -orbax. The verb `save` writes FOLDER with
random weights, `statistics` those that openpi has beside them; `act` writes FOLDER.json:
observations, noise, and lerobot's actions in f32 and, for the second, as stored.
"""
import json
import pathlib
import sys

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

SOURCE = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(SOURCE / "tools" / part) for part in ("compare_peers", "make_goldens")]
import lerobot_block  # noqa: E402
import lerobot_cells  # noqa: E402

SHARD_BYTES = 5 * 10**9  # as the hub's library has it
PALIGEMMA = "paligemma_with_expert.paligemma."
TABLE = PALIGEMMA + "model.language_model.embed_tokens.weight"
HEAD = PALIGEMMA + "lm_head.weight"


class Layout(lerobot_cells.Cell):
    prompt, steps = "pick up the red block", 10  # as openpi tokenizes and counts, too

    def __init__(self, name, size):
        import transformers

        policy, self.stored, *self.words = name.split("-")
        if size == "full":
            self.side, self.horizon = 224, 50
            transformers.AutoTokenizer.from_pretrained = lerobot_cells.small_tokenizer
        else:
            lerobot_cells.shrink(policy)
        self.tiny = size == "tiny"
        super().__init__(policy, name)

    def policy_with(self, precision, fill):
        self.dtype, torch_type = lerobot_block.PRECISIONS[precision]
        return lerobot_block.filled_policy(self.policy, self.config(), fill)


def allocate(network):
    """One memory for the table of tokens and the head that shares it: openpi and lerobot store it
    once, and two of them take 4 GB in float32."""
    both = network.paligemma_with_expert.paligemma
    head, both.lm_head = both.lm_head, None
    lerobot_block.allocate(network)
    head.weight = network.get_parameter(TABLE)
    both.lm_head = head


def save(layout, folder):
    folder.mkdir()
    policy = layout.policy_with(layout.stored, allocate)
    if "openpi" in layout.words:
        save_openpi(layout, policy, folder)
    else:
        if "shards" in layout.words:
            weights = policy.state_dict()
            total = sum(t.nbytes for t in weights.values())
            save_torch_state_dict(weights, folder, max_shard_size=min(SHARD_BYTES, total // 3))
            policy.config.save_pretrained(folder)
        else:
            policy.save_pretrained(folder)
        for part in layout.processors(policy.config):
            part.save_pretrained(folder)
    if layout.tiny:
        heads = {"vision": {"heads": lerobot_cells.VISION_HEADS}}
        (folder / "tendon.json").write_text(json.dumps(heads))


def save_openpi(layout, policy, folder):
    """As openpi's train_pytorch.py leaves a folder."""
    weights = policy.model.state_dict()
    del weights[TABLE]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    pi05, c = layout.policy == "pi05", policy.config
    model = {"dtype": layout.dtype, "action_horizon": c.chunk_size, "action_dim": c.max_action_dim,
             "max_token_len": c.tokenizer_max_length, "pi05": pi05, "discrete_state_input": pi05}
    torch.save({"global_step": 1, "config": {"name": "own", "model": model}, "timestamp": 1.7e9},
               folder / "metadata.pt")
    write_statistics(folder)


def write_statistics(folder):
    statistics = {"observation.state": "state", "action": "actions"}
    statistics = {to: {key: lerobot_cells.STATISTICS[name][key].tolist()
                       for key in ("mean", "std", "q01", "q99")}
                  for name, to in statistics.items()}
    (folder / "assets/own").mkdir(parents=True)
    (folder / "assets/own/norm_stats.json").write_text(json.dumps({"norm_stats": statistics}))


def load(network, folder):
    """The files stay mapped where their type is the network's: nothing is in memory twice."""
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
    tensors.setdefault(TABLE, tensors.get(HEAD))
    both = network.paligemma_with_expert
    both.paligemma.lm_head = both.gemma_expert.lm_head = None  # no action needs them
    own = dict(network.named_parameters())
    network.load_state_dict({name: t.to(own[name].dtype) for name, t in tensors.items()
                             if "lm_head" not in name}, assign=True)


def act(layout, folder):
    told = {"noise": lerobot_cells.noise_of(32, layout.horizon)[0].tolist(), "actions": {}}
    for precision in dict.fromkeys([layout.stored, "f32"]):
        policy = layout.policy_with(precision, lambda network: load(network, folder)).eval()
        before, after = layout.processors(policy.config)
        turns = (0, 1) if precision == "f32" else (1,)
        cells = [layout.run(policy, before, after, folder.parent, turn) for turn in turns]
        told["actions"][precision] = [cell.pop("actions") for cell in cells]
        told["observations"] = cells
        del policy
    folder.with_suffix(".json").write_text(json.dumps(told))


def main():
    name, size, verb, folder = sys.argv[2:6]
    torch.manual_seed(0)
    folder = pathlib.Path(folder)
    if verb == "statistics":
        return write_statistics(folder)
    with torch.inference_mode():
        {"save": save, "act": act}[verb](Layout(name, size), folder)


if __name__ == "__main__":
    main()
