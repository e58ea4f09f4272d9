"""Trains the demo's policy from scratch on demonstrations that export.cc wrote.

    python train.py DATA OUT --policy pi0|pi05 --minutes M [--threads 1] [--seed 0] [--resume CKPT]

OUT becomes a checkpoint folder as lerobot's save_pretrained leaves it (weights: their moving
average, in bfloat16), with tokenizer/tokenizer.model, tendon.json (what the tensors cannot tell)
and training.csv beside. OUT.state.pt is what --resume OUT goes on from.
"""

import argparse
import copy
import csv
import json
import math
import os
import pathlib
import shutil
import time

import numpy as np
import torch

import demonstrations
import network

BATCH, DRAWS, PEAK_RATE, WARM_UP, AVERAGE = 64, 4, 1.5e-3, 200, 0.999
TEACHING = 0.5  # weight of what network.Teaching asks


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--policy", choices=("pi0", "pi05"), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=pathlib.Path, metavar="CKPT")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="peak learning rate")
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-bf16", action="store_true", help="all arithmetic in float32")
    return parser.parse_args()


class Training:
    """Policy, optimizer and moving average of one run."""

    def __init__(self, o):
        torch.manual_seed(o.seed)
        self.o, self.step, self.earlier, self.rows = o, 0, 0.0, []
        self.data = demonstrations.Demonstrations(o.data)
        prompts = self.data.meta["prompts"]
        self.tokenizer_model = demonstrations.train_tokenizer(prompts)
        self.tokenizer = demonstrations.PaddedTokenizer(self.tokenizer_model)
        self.tokenizer.check_words(prompts)
        vocab = self.tokenizer.model.vocab_size()
        self.policy = network.build_policy(o.policy, vocab, self.data.meta)
        self.net, self.config = self.policy.model, self.policy.config
        network.initialise(self.policy, torch.Generator().manual_seed(o.seed))
        self.processors = demonstrations.make_processors(
            o.policy, self.config, demonstrations.statistics(self.data), self.tokenizer
        )
        self.ready = demonstrations.preprocess(self.data, self.processors[0], o.policy == "pi0")
        side = self.config.image_resolution[0] // network.VISION["patch"]
        self.ready["colour"], self.ready["shape"] = demonstrations.patch_labels(self.data, side)
        target = torch.from_numpy(self.data.objects[:, 0, :2].copy())
        away = target - self.data.state[:, :2]
        self.ready["target"] = torch.cat([(target - 0.5) * 4, away * 4], 1)
        self.weights = [p for p in self.policy.parameters() if p.requires_grad]
        self.teaching = network.Teaching(torch.Generator().manual_seed(o.seed + 2))
        trained = self.weights + list(self.teaching.parameters())
        matrices = [p for p in trained if p.ndim > 1]
        vectors = [p for p in trained if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=o.rate, betas=(0.9, 0.95), weight_decay=0, fused=True
        )
        self.average = [p.detach().clone() for p in self.weights]
        self.generator = torch.Generator().manual_seed(o.seed + 1)
        self.train_rows, held_out = self.data.split()
        self.order, self.order_random = np.empty(0, np.int64), np.random.default_rng(o.seed)
        self.held_out = self.fixed_batches(held_out)
        if o.resume:
            self.resume()
        self.loss = network.flow_loss
        if not o.no_compile:
            self.loss = torch.compile(self.loss, dynamic=False)
        self.begin = time.monotonic()

    def batch(self, rows):
        rows = np.sort(rows)
        at = torch.from_numpy(rows)
        return {k: v[at] for k, v in self.ready.items()} | {
            "images": torch.from_numpy(self.data.images[rows])
        }

    def draw(self, generator):
        shape = (BATCH * DRAWS, self.config.chunk_size, self.config.max_action_dim)
        noise = torch.randn(shape, generator=generator)
        return noise, network.draw_times(BATCH, DRAWS, self.config, generator)

    def fixed_batches(self, rows):
        random = np.random.default_rng(12345)
        rows = random.permutation(rows)[: 8 * BATCH]
        generator = torch.Generator().manual_seed(12345)
        starts = range(0, len(rows) - BATCH + 1, BATCH)
        return [(self.batch(rows[i : i + BATCH]), *self.draw(generator)) for i in starts]

    def next_rows(self):
        if len(self.order) < BATCH:
            self.order = self.order_random.permutation(self.train_rows)
        rows, self.order = self.order[:BATCH], self.order[BATCH:]
        return rows

    def evaluate(self, *inputs):
        with torch.autocast("cpu", torch.bfloat16, enabled=not self.o.no_bf16):
            return self.loss(self.net, *inputs, self.teaching)

    def elapsed(self):
        return time.monotonic() - self.begin

    def rate(self):
        done = min(1, self.elapsed() / 60 / self.o.minutes)
        warm = min(1, (self.step + 1) / WARM_UP) if not self.o.resume else 1
        return self.o.rate * warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * done)))

    def train_step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        loss, taught = self.evaluate(self.batch(self.next_rows()), *self.draw(self.generator))
        self.optimizer.zero_grad(set_to_none=True)
        (loss + TEACHING * taught).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - keep)
        return torch.stack([loss.detach(), taught.detach()])

    @torch.no_grad()
    def held_out_loss(self):
        """Of the averaged weights, always on the same frames, noises and times."""
        own = [p.clone() for p in self.weights]
        torch._foreach_copy_(self.weights, self.average)
        losses = [self.evaluate(*inputs)[0].item() for inputs in self.held_out]
        torch._foreach_copy_(self.weights, own)
        return float(np.mean(losses)) if losses else math.nan

    def run(self):
        count = sum(p.numel() for p in self.weights)
        print(f"{self.o.policy}: {count} parameters, {len(self.train_rows)} frames, ", end="")
        print(f"{self.tokenizer.model.vocab_size()} pieces", flush=True)
        saved, marked, recent = self.elapsed(), self.elapsed(), []
        while self.elapsed() < 60 * self.o.minutes:
            recent.append(self.train_step())
            if self.step % 100 == 0:
                speed = len(recent) * BATCH / (self.elapsed() - marked)
                loss, taught = torch.stack(recent).mean(0).tolist()
                held_out = self.held_out_loss()
                self.rows.append([self.step, round(self.elapsed(), 1), loss, taught, held_out])
                print(
                    f"step {self.step}  {self.elapsed():.0f} s  loss {loss:.4f}  {taught:.4f}  "
                    f"held out {held_out:.4f}  {speed:.1f} samples/s",
                    flush=True,
                )
                marked, recent = self.elapsed(), []
                if self.elapsed() - saved > 60 * self.o.save_minutes:
                    self.save()
                    saved = self.elapsed()
        self.save()

    def save(self):
        """Writes OUT.part and puts it in OUT's place; then the state to go on from."""
        out = self.o.out
        part, old = (out.with_name(out.name + end) for end in (".part", ".old"))
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        own = [p.detach().clone() for p in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.average)
            averaged = copy.deepcopy(self.policy).to(torch.bfloat16)
            torch._foreach_copy_(self.weights, own)
        averaged.save_pretrained(part)
        for processor in self.processors:
            processor.save_pretrained(part)
        (part / "tokenizer").mkdir()
        (part / "tokenizer" / "tokenizer.model").write_bytes(self.tokenizer_model)
        sizes = {
            "vision": {"heads": network.VISION["heads"]},
            "vlm": {k: network.VLM[k] for k in ("heads", "kv_heads", "head_dim")},
            "expert": {k: network.EXPERT[k] for k in ("heads", "kv_heads", "head_dim")},
        }
        (part / "tendon.json").write_text(json.dumps(sizes) + "\n")
        with open(part / "training.csv", "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["step", "seconds", "train_loss", "teaching_loss", "held_out_loss"])
            lines.writerows(self.rows)
        if out.exists():
            out.rename(old)
        part.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        state = {"step": self.step, "rows": self.rows, "average": self.average, "weights": own}
        state["optimizer"] = self.optimizer.state_dict()
        file = out.with_name(out.name + ".state.pt")
        torch.save(state, str(file) + ".part")
        os.replace(str(file) + ".part", file)

    def resume(self):
        file = self.o.resume.with_name(self.o.resume.name + ".state.pt")
        state = torch.load(file, weights_only=True)
        with torch.no_grad():
            torch._foreach_copy_(self.weights, state["weights"])
        self.average, self.step, self.rows = state["average"], state["step"], state["rows"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.earlier = self.rows[-1][1] if self.rows else 0.0


def main():
    o = options()
    torch.set_num_threads(o.threads)
    Training(o).run()


if __name__ == "__main__":
    main()
