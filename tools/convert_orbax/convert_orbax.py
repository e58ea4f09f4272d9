#!/usr/bin/env python3
"""Turns a JAX (orbax) checkpoint of openpi into openpi's PyTorch layout, which tendon opens.

CHECKPOINT holds params/ and, as a rule, assets/<id>/norm_stats.json. OUT receives
model.safetensors, config.json, assets/ and, where tensors do not tell every size, tendon.json.
"""
import argparse
import contextlib
import json
import math
import os
import pathlib
import shutil
import signal
import struct
import sys
import tempfile

from layout import model_rows, size

try:
    import ml_dtypes
    import numpy as np
    import tensorstore as ts
    MISSING_PACKAGE = None
except ImportError as error:
    MISSING_PACKAGE = error.name

USAGE, CHECKPOINT, INTERRUPTED = 2, 3, 130
PRECISIONS = {"bfloat16": "BF16", "float32": "F32"}
CACHE_BYTES_MAX = 16 << 30  # more than the largest array of a full-size model


class Fault(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def listed(paths):
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(paths[:5]) + more or "none"


def result(future, what):
    try:
        return future.result()
    except (ValueError, RuntimeError, OSError) as e:
        raise Fault(CHECKPOINT, f"{what} cannot be read; is the download complete? "
                    f"({str(e).splitlines()[0][:400]})") from e


def open_tree(checkpoint):
    """Path -> array, still on disk: only names, shapes and types are read."""
    params = checkpoint / "params"
    if not params.is_dir():
        inside = (checkpoint / "_METADATA").exists() or (checkpoint / "manifest.ocdbt").exists()
        raise Fault(CHECKPOINT, f"{checkpoint} has no folder params/; give " +
                    ("the folder above it" if inside else "the folder of an openpi checkpoint"))
    store = {"driver": "file", "path": f"{params.resolve()}/"}
    if (params / "manifest.ocdbt").exists():
        store = {"driver": "ocdbt", "base": store}
    tree = {}
    for key in result(result(ts.KvStore.open(store), params).list(), params):
        name, _, file = key.decode(errors="replace").rpartition("/")
        driver = {".zarray": "zarr", "zarr.json": "zarr3"}.get(file)
        if not driver or not name:
            continue
        # A chunk may hold all layers, which are read one by one: each array caches its own, and
        # the cache goes when the array is done. An absent chunk would otherwise read as zeros.
        place = {**store, "path": f"{store.get('path', '')}{name}/"}
        spec = {"driver": driver, "kvstore": place,
                "fill_missing_data_reads": False,
                "context": {"cache_pool": {"total_bytes_limit": CACHE_BYTES_MAX}}}
        path = name.replace(".", "/").removeprefix("params/").removesuffix("/value")
        tree[path] = result(ts.open(spec, read=True), f"{params}: {path}")
    if not tree:
        raise Fault(CHECKPOINT, f"{params} holds neither manifest.ocdbt nor arrays; is the "
                    "download complete?")
    return tree


def is_pi05(tree, checkpoint):
    """By the arrays that only one of the two models has."""
    norm = "PaliGemma/llm/layers/pre_attention_norm_1/"
    pi0 = any(p.startswith(("state_proj/", "action_time_mlp_", norm + "scale")) for p in tree)
    pi05 = any(p.startswith(("time_mlp_", norm + "Dense_0")) for p in tree)
    if pi0 == pi05:
        raise Fault(CHECKPOINT, f"{checkpoint} is neither pi0 (state_proj, action_time_mlp_in) nor "
                    "pi0.5 (time_mlp_in, adaptive norms)" + ": it has arrays of both" * pi0)
    return pi05


def sizes_of(tree, rows, checkpoint):
    """What each letter of the rows stands for; every shape must be as the arrays before imply."""
    if missing := [r.path for r in rows if r.path not in tree]:
        unknown = sorted(set(tree) - {path for r in rows for path in (r.path, *r.lora)})
        raise Fault(CHECKPOINT, f"{checkpoint}/params lacks {listed(missing)}; is the download "
                    f"complete? Arrays in it that neither pi0 nor pi0.5 has: {listed(unknown)}")
    sizes = {}
    for r in rows:
        array, axes = tree[r.path], r.axes.split()
        problem = f"{checkpoint}/params: {r.path} is {array.dtype.name} {list(array.shape)}, "
        if array.dtype.name not in ("float32", "bfloat16", "float16"):
            raise Fault(CHECKPOINT, problem + "expected float32, bfloat16 or float16")
        if len(array.shape) != len(axes) or 0 in array.shape:
            raise Fault(CHECKPOINT, f"{problem}expected {len(axes)} axes, none empty")
        for axis, n in zip(axes, array.shape):
            if axis.isalpha():
                sizes.setdefault(axis, n)
        expected = [size(axis, sizes) for axis in axes]
        if list(array.shape) != expected:
            raise Fault(CHECKPOINT, f"{problem}expected {expected}, as the other arrays imply")
    return sizes


def merged(r, w, a, b, scale):
    """The weight that acts as base and low-rank update do together, of one layer.

    openpi scales the updates of attention (by alpha / rank) and not those of the MLPs. Its output
    projection sums over the heads after a, so every head meets the sum of all b.
    """
    if "attn_vec_einsum" in r.path:
        b = b.sum(axis=0)
    return w + (scale if "/attn/" in r.path else 1) * (a @ b)


def converted(tree, r, lora_scale):
    """The tensors of one row, layer by layer, so that no more than one array is in memory."""
    arrays = [tree.pop(path) for path in (r.path, *r.lora) if path in tree]
    w, *low_rank = [a.shape for a in arrays]
    if low_rank:
        a, b = low_rank if len(low_rank) == 2 else ((), ())
        if not a or a != (*w[:-1], a[-1]) or b != (*w[:-2], a[-1], w[-1]):
            raise Fault(CHECKPOINT, f"{' and '.join(r.lora)} do not fit {r.path} {list(w)}: "
                        f"expected both, with a rank in place of its last and last but one axis")
    for layer in range(w[0]) if r.layered else [...]:
        read = [result(a[layer].read(), r.path) for a in arrays]
        if low_rank:
            read = [merged(r, *(x.astype(np.float32) for x in read), lora_scale)]
        if not np.isfinite(read[0]).all():
            raise Fault(CHECKPOINT, f"{r.path} holds values that are not finite; damaged?")
        yield from r.arrange(read[0])


def flush(file):
    file.flush()
    os.fsync(file.fileno())


def write_weights(path, tree, rows, sizes, precision, lora_scale):
    """A safetensors file: length of the header, the header with all offsets, the tensors."""
    dtype = np.dtype(np.float32 if precision == "float32" else ml_dtypes.bfloat16)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in (tensor for r in rows for tensor in r.tensors(sizes)):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": PRECISIONS[precision], "shape": shape,
                        "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    if (free := shutil.disk_usage(path.parent).free) < end:
        raise Fault(CHECKPOINT, f"the weights take {end / 1e9:.2f} GB, but the disk of "
                    f"{path.parent.parent} has {free / 1e9:.2f} GB free")
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for r in rows:
            if sys.stderr.isatty():
                print(f"\r{file.tell() / end:4.0%}", end="\r", file=sys.stderr, flush=True)
            for w in converted(tree, r, lora_scale):
                # astype rounds to nearest, ties to even, as the cast of JAX and PyTorch does.
                w = np.ascontiguousarray(w.astype(dtype, copy=False))
                file.write(w.view(np.uint8).data)
        flush(file)
    return f"{len(header) - 1} tensors, {end / 1e9:.2f} GB of {precision}"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        flush(file)


def write_json(path, content):
    write(path, (json.dumps(content, indent=2) + "\n").encode())


def openpi_config(sizes, precision, horizon):
    vlm, expert = sizes["d"], sizes["e"]
    config = {"action_dim": sizes["i"], "action_horizon": horizon,
              "paligemma_variant": "gemma_2b" if vlm == 2048 else f"width_{vlm}",
              "action_expert_variant": "gemma_300m" if expert == 1024 else f"width_{expert}",
              "precision": precision}
    return {key: value for key, value in config.items() if value is not None}


def tendon_config(sizes):
    """Sizes that the shapes of PyTorch's tensors do not tell."""
    config = {} if sizes["r"] * 72 == sizes["w"] else {"vision": {"heads": sizes["r"]}}
    if sizes["k"] != 1:
        gemma = {"heads": sizes["n"], "kv_heads": sizes["k"], "head_dim": sizes["h"]}
        config |= {"vlm": gemma, "expert": gemma}
    return config


@contextlib.contextmanager
def staged(out, force):
    """A folder inside `out` whose files move there once all are complete, the weights last."""
    if out.is_dir() and any(out.iterdir()) and not force:
        raise Fault(USAGE, f"{out} is not empty; choose another folder, or say --force to replace "
                    "the files of an earlier conversion")
    if (out / "params").exists():
        raise Fault(USAGE, f"{out} is a JAX checkpoint itself; choose another folder")
    created = not out.exists()
    out.mkdir(exist_ok=True)
    stage = pathlib.Path(tempfile.mkdtemp(prefix=".convert_orbax.", dir=out))
    try:
        yield stage
        # A folder without weights does not open: old and new files never form a model together.
        for old in ("model.safetensors", "tendon.json"):
            (out / old).unlink(missing_ok=True)
        files = [f for f in stage.rglob("*") if f.is_file()]
        for file in sorted(files, key=lambda f: f.name == "model.safetensors"):
            target = out / file.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        created = False
    finally:
        shutil.rmtree(out if created else stage, ignore_errors=True)


def convert(args):
    tree = open_tree(args.checkpoint)
    pi05 = is_pi05(tree, args.checkpoint)
    rows = list(model_rows(pi05))
    sizes = sizes_of(tree, rows, args.checkpoint)
    lora = any(path in tree for r in rows for path in r.lora)
    # An update is often smaller than half a step of the bfloat16 weight that it changes.
    precision = args.precision or ("float32" if lora else "bfloat16")
    assets = args.checkpoint / "assets"
    statistics = sorted(assets.rglob("norm_stats.json"))
    with staged(args.out, args.force) as stage:
        written = write_weights(stage / "model.safetensors", tree, rows, sizes, precision,
                                args.lora_scale)
        write_json(stage / "config.json", openpi_config(sizes, precision, args.horizon))
        if beside := tendon_config(sizes):
            write_json(stage / "tendon.json", beside)
        for file in statistics:
            write(stage / file.relative_to(args.checkpoint), file.read_bytes())
    for path in sorted(tree):
        print(f"warning: {path} is no array of {'pi0.5' if pi05 else 'pi0'}, it was left out",
              file=sys.stderr)
    print(f"{args.out}: {'pi0.5' if pi05 else 'pi0'}, {written}")
    ids = [str(file.parent.relative_to(assets)) for file in statistics]
    print("statistics:", ", ".join(ids) or "none found; tendon will need --statistics FILE")
    if lora:
        print(f"LoRA updates are merged into the weights, attention's times {args.lora_scale:g} (1 "
              "is right for\nall of openpi's configs). Run with --precision f32: rounding to "
              "bfloat16 loses much of them.")
    print_next_steps(args, pi05)


def print_next_steps(args, pi05):
    """What a checkpoint does not hold is for the user to add."""
    config = "pi05_droid" if pi05 else "pi0_aloha_sim"
    if not args.horizon:
        print("config.json has no action_horizon, since a JAX checkpoint does not tell it: it "
              "comes from\nthe training config that --config names, which tendon then needs, or "
              "from --horizon N here.")
    print(f"""Next, with your training config's name, and the tokenizer, which no checkpoint holds:
  tendon inspect {args.out} --config {config}
  tendon run {args.out} --config {config} --tokenizer paligemma_tokenizer.model \\
      --prompt TEXT --state FILE --image NAME=FILE""")


def positive(text):
    if (value := int(text)) < 1:
        raise ValueError
    return value


def stop(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 ok, 2 usage, 3 checkpoint or disk, 130 interrupted.")
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", type=pathlib.Path, help="the folder above params/")
    add("out", metavar="OUT", type=pathlib.Path, help="folder to create; its parent must exist")
    add("--precision", choices=list(PRECISIONS),
        help="default: bfloat16, as openpi computes; float32 if there are LoRA updates")
    add("--horizon", type=positive, metavar="N",
        help="actions per chunk, for config.json; a JAX checkpoint does not tell it")
    add("--lora-scale", type=float, default=1.0, metavar="X",
        help="alpha / rank of attention's LoRA updates; default: 1, as in openpi's configs")
    add("--force", action="store_true",
        help="replace the files of an earlier conversion in OUT, keep all others")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    try:
        if MISSING_PACKAGE:
            requirements = pathlib.Path(__file__).with_name("requirements.txt")
            raise Fault(USAGE, f"no package {MISSING_PACKAGE}; pip install -r {requirements}")
        convert(args)
    except Fault as e:
        print(f"convert_orbax: {e}", file=sys.stderr)
        return e.code
    except OSError as e:
        print(f"convert_orbax: {e.filename or args.out}: {e.strerror}", file=sys.stderr)
        return CHECKPOINT
    except KeyboardInterrupt:
        print("convert_orbax: interrupted; nothing half-written remains", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
