"""The exported demonstrations, their tokenizer, statistics and lerobot's processors."""

import importlib
import io
import json
import re

import numpy as np
import sentencepiece
import torch

KEYS = {"state": "observation.state", "actions": "action"}
WHOLE_WORDS = (
    "reach push red green blue yellow magenta cyan disc square triangle left right top bottom"
).split()


class Demonstrations:
    """The arrays in an exporter's folder; images stay on disk."""

    def __init__(self, folder):
        meta = self.meta = json.loads((folder / "meta.json").read_text())
        n, side, cameras = meta["frames"], meta["image"], len(meta["cameras"])

        def array(name, dtype, *shape):
            return np.memmap(folder / name, dtype, "r", shape=(n, *shape))

        self.images = array("images.u8", np.uint8, cameras, side, side, 3)
        self.state = torch.from_numpy(array("state.f32", np.float32, meta["state_dim"]).copy())
        actions = array("actions.f32", np.float32, meta["horizon"], meta["action_dim"])
        self.actions = torch.from_numpy(actions.copy())
        self.prompt = array("prompt.i32", np.int32)
        self.episode = array("episode.i32", np.int32)
        self.objects = array("objects.f32", np.float32, 3, 4)

    def split(self):
        """Rows to train on, and those of every 50th episode, held out."""
        held_out = self.episode % 50 == 7
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def patch_labels(data, patches, table=1.1, eye=0.5, radius=0.085):
    """What lies under each patch's centre: colour and shape [N, cameras, patches²], 0 for none."""
    n = len(data.state)
    place = (np.arange(patches, dtype=np.float32) + 0.5) / patches
    y, x = np.meshgrid(place, place, indexing="ij")
    grid = np.stack([x.ravel(), y.ravel()], 1)
    colour, shape = (np.zeros((n, 2, patches * patches), np.int8) for _ in range(2))
    gripper = data.state[:, None, :2].numpy()
    centres = (grid[None] * table - (table - 1) / 2, gripper + (grid[None] - 0.5) * eye)
    for camera, at in enumerate(centres):
        for item in range(data.objects.shape[1]):
            one = data.objects[:, None, item]
            under = np.hypot(at[..., 0] - one[..., 0], at[..., 1] - one[..., 1]) < 1.2 * radius
            colour[:, camera] = np.where(under, one[..., 2] + 1, colour[:, camera])
            shape[:, camera] = np.where(under, one[..., 3] + 1, shape[:, camera])
    return torch.from_numpy(colour), torch.from_numpy(shape)


def statistics(data):
    """lerobot's statistics of state and actions."""
    stats = {}
    for name, key in KEYS.items():
        values = getattr(data, name).flatten(0, -2).double().numpy()
        at = np.quantile(values, (0.01, 0.1, 0.5, 0.9, 0.99), axis=0)
        all_of = dict(zip(("q01", "q10", "q50", "q90", "q99"), at, strict=True))
        all_of |= {"mean": values.mean(0), "std": values.std(0)}
        all_of |= {"min": values.min(0), "max": values.max(0)}
        stats[key] = {k: torch.from_numpy(v).float() for k, v in all_of.items()}
        stats[key]["count"] = torch.tensor([float(len(values))])
    return stats


def train_tokenizer(prompts):
    """A SentencePiece BPE model (the file's bytes) with PaliGemma's rules, words as pieces."""
    bare = [p + "\n" for p in prompts]
    full = [f"Task: {p}, State: 1;\nAction: " for p in prompts]
    numbers = [f"▁{n}" for n in range(-1, 256)]  # a state value is one piece
    for size in range(700, 520, -1):
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter((bare + full) * 10),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                pad_id=0,
                eos_id=1,
                bos_id=2,
                unk_id=3,
                pad_piece="<pad>",
                eos_piece="<eos>",
                bos_piece="<bos>",
                unk_piece="<unk>",
                byte_fallback=True,
                split_digits=False,
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                normalization_rule_name="identity",
                user_defined_symbols=["\n", *numbers],
                character_coverage=1.0,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            if "too high" not in str(error):
                raise
            continue
        return model.getvalue()
    raise RuntimeError("the prompts give no vocabulary")


class PaddedTokenizer:
    """Stands for the Hugging Face tokenizer that lerobot's processor would download."""

    def __init__(self, model):
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model)

    def from_pretrained(self, _name):
        return self

    def __call__(self, texts, max_length, **_):
        ids = torch.zeros(len(texts), max_length, dtype=torch.long)
        mask = torch.zeros(len(texts), max_length, dtype=torch.long)
        known = {}
        for row, text in enumerate(texts):
            if text not in known:
                known[text] = [self.model.bos_id()] + self.model.encode(text)
                if len(known[text]) > max_length:
                    raise ValueError(f"{len(known[text])} tokens, {max_length} fit: {text!r}")
            one = known[text]
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def check_words(self, prompts):
        """Every word of the prompts is one piece, and the demo's own words are all there."""
        words = sorted({w for p in prompts for w in re.findall(r"\S+", p)})
        for word in words:
            texts = [" " + word] + ([word] if any(p.startswith(word) for p in prompts) else [])
            for text in texts:
                pieces = self.model.encode(text, out_type=str)
                if len(pieces) != 1:
                    raise ValueError(f"'{text}' is {pieces}")
        if missing := set(WHOLE_WORDS) - set(words):
            print("words that no prompt has:", *sorted(missing))


def make_processors(name, config, stats, tokenizer):
    """lerobot's own pre- and postprocessor, tokenizing with `tokenizer`."""
    from lerobot.processor import tokenizer_processor

    tokenizer_processor.AutoTokenizer = tokenizer
    module = importlib.import_module(f"lerobot.policies.{name}.processor_{name}")
    return getattr(module, f"make_{name}_pre_post_processors")(config, stats)


def preprocess(data, preprocessor, with_state):
    """All frames but their images, as the policy's preprocessor leaves them."""
    prompts = data.meta["prompts"]
    batch = {
        "observation.state": data.state,
        "action": data.actions,
        "task": [prompts[i] for i in data.prompt],
    }
    out = preprocessor(batch)
    ready = {
        "tokens": out["observation.language.tokens"].to(torch.int32),
        "token_mask": out["observation.language.attention_mask"].bool(),
        "actions": out["action"].float(),
    }
    if with_state:
        ready["state"] = out["observation.state"].float()
    return ready
