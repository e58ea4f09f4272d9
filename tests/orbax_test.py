#!/usr/bin/env python3
"""orbax_test.py TENDON GOLDEN_CASE SOURCE BUILD: converts JAX checkpoints and runs them.

Installs the converter's packages into BUILD/orbax_venv first, once, and goes on in there. Exit code
77, "skipped: reason", where they cannot be had.
"""
import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from environment import (DATA, FLOWER, TOKENIZER, Checks, environment, printed, read_safetensors,
                         skip)

GOLDEN_CASE = sys.argv[2]
SOURCE, BUILD = map(pathlib.Path, sys.argv[3:5])
CONVERTER = SOURCE / "tools/convert_orbax/convert_orbax.py"
GOLDEN, ORBAX = DATA / "golden", DATA / "orbax"
VENV = BUILD / "orbax_venv"
PYTHON = VENV / "bin/python"
check = Checks()

if pathlib.Path(sys.prefix).resolve() != VENV.resolve():
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        skip(f"the packages are for Python 3.10 to 3.13, this is {sys.version.split()[0]}")
    environment(VENV, CONVERTER.with_name("requirements.txt"))
    os.execv(PYTHON, [str(PYTHON), "-B", *sys.argv])

sys.path.insert(0, str(CONVERTER.parent))
import convert_orbax  # noqa: E402  (only the environment above has its packages)
import numpy as np  # noqa: E402
import tensorstore as ts  # noqa: E402


def called(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def convert(code, piece, checkpoint, out, *options):
    """Ends with `code` and says `piece`; where it fails, nothing that was not there remains. In
    this process, since importing the packages takes longer than such a conversion."""
    before = sorted(out.rglob("*")) if out.exists() else None
    arguments = [str(CONVERTER), *map(str, (checkpoint, out, *options))]
    said = io.StringIO()
    with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(said), \
            contextlib.redirect_stderr(said):
        try:
            got = convert_orbax.main()
        except SystemExit as usage:
            got = usage.code
    check(got == code and piece in said.getvalue(),
          f"convert {checkpoint} {out.name} {options}: exit {got}, expected {code} and {piece!r}\n"
          f"  {said.getvalue()}")
    if code:
        check((sorted(out.rglob("*")) if out.exists() else None) == before,
              f"{checkpoint}: the failed conversion left something in {out.name}")
    return out


def tensors(folder):
    file = folder / "model.safetensors"
    header, found = read_safetensors(file)
    end = 8 + len(header) + max(entry["data_offsets"][1] for entry, _ in found.values())
    check(len(header) % 8 == 0 and end == file.stat().st_size,
          f"{folder.name}: the data is aligned and complete")
    numpy_types = {"F32": np.float32, "BF16": np.uint16}
    return {name: np.frombuffer(content, numpy_types[entry["dtype"]]).reshape(entry["shape"])
            for name, (entry, content) in found.items()}


def store_of(folder, path="", ocdbt=True):
    base = f"{folder}/params/"
    if ocdbt:
        return {"driver": "ocdbt", "base": {"driver": "file", "path": base}, "path": path}
    return {"driver": "file", "path": base + path}


def altered(source, folder, change, driver="zarr", ocdbt=True):
    """Writes the arrays of an orbax checkpoint again, after `change` had its way with them."""
    arrays = {path: array.read().result()
              for path, array in convert_orbax.open_tree(source).items()}
    change(arrays)
    for path, array in arrays.items():
        place = store_of(folder, f"params.{path.replace('/', '.')}/", ocdbt)
        ts.open({"driver": driver, "kvstore": place}, create=True, dtype=array.dtype,
                shape=array.shape).result().write(array).result()
    shutil.copytree(source / "assets", folder / "assets")
    return folder


def same_stages(scratch, case, folder, what):
    """Every stage and the actions are those of the golden case, which are lerobot's."""
    golden = pathlib.Path(tempfile.mkdtemp(dir=scratch))
    for file in (GOLDEN / case).glob("*.safetensors"):
        shutil.copy(file, golden)
    config = json.loads((ORBAX / f"{case[:4]}-orbax-{case[5:]}" / "config.json").read_text())
    config["weights"]["file"] = str(folder / "model.safetensors")
    (golden / "config.json").write_text(json.dumps(config))
    code, out, err = called(GOLDEN_CASE, golden)
    check(code == 0, f"{what} reproduces {case}: {out[-2000:]}{err}")


def actions(folder):
    return np.array(printed(
        "run", folder, "--precision", "f32", "--prompt", "pick up the red cube", *TOKENIZER,
        "--state", ",".join(["0.25"] * 8), "--image", f"base_0_rgb={FLOWER}")["actions"])


def both_models(scratch, kind):
    source = ORBAX / f"tiny-orbax-{kind}"
    precise = convert(0, f"{kind.replace('pi05', 'pi0.5')}, ", source, scratch / f"{kind}-f32",
                      "--precision", "float32", "--horizon", "10")
    same_stages(scratch, f"tiny-{kind}", precise, "the converted checkpoint")

    # openpi's own conversion has the same tensors, and a head of the expert that nobody uses.
    expected = {name: t.shape for name, t in tensors(GOLDEN / f"tiny-checkpoint-openpi-{kind}" /
                                                     "checkpoint").items()}
    expected.pop("paligemma_with_expert.gemma_expert.lm_head.weight")
    exact = tensors(precise)
    check({name: t.shape for name, t in exact.items()} == expected, f"{kind}: names and shapes")
    rounded = tensors(convert(0, "bfloat16", source, scratch / f"{kind}-bf16"))
    for name, t in exact.items():
        bits = t.view(np.uint32).astype(np.uint64)
        nearest_even = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        check(np.array_equal(rounded[name], nearest_even), f"{kind}: {name} is rounded to nearest")

    check(json.loads((precise / "config.json").read_text()) == {
        "action_dim": 32, "action_horizon": 10, "paligemma_variant": "width_64",
        "action_expert_variant": "width_32", "precision": "float32"}, f"{kind}: config.json")
    check("action_horizon" not in (scratch / f"{kind}-bf16/config.json").read_text(),
          f"{kind}: a horizon that was not given is not invented")
    check.expect(3, "does not tell the action horizon", "inspect", scratch / f"{kind}-bf16")
    stats = "assets/demo/norm_stats.json"
    check((precise / stats).read_bytes() == (source / stats).read_bytes(), f"{kind}: statistics")
    config = printed("inspect", precise)["config"]
    check((config["policy"], config["horizon"], config["vision"]["heads"]) == (kind, 10, 2),
          f"{kind}: tendon sees {config}")
    check(np.isfinite(actions(precise)).all() and actions(precise).shape == (10, 8),
          f"{kind}: tendon run gives actions")
    return precise


def other_spellings(scratch, source, converted):
    """The same arrays as plain files, in zarr's third format, with more heads, unknown ones."""
    content = (converted / "model.safetensors").read_bytes()
    for driver, ocdbt in (("zarr", False), ("zarr3", True)):
        folder = altered(source, scratch / f"{driver}-{ocdbt}", lambda arrays: None, driver, ocdbt)
        out = convert(0, "pi0, ", folder, scratch / f"{driver}-{ocdbt}-out", "--precision",
                      "float32", "--horizon", "10")
        check((out / "model.safetensors").read_bytes() == content, f"{driver} {ocdbt} is the same")

    def double(arrays):  # two equal key/value heads act as one
        for suffix in ("", "_1"):
            name = f"PaliGemma/llm/layers/attn/kv_einsum{suffix}/w"
            arrays[name] = np.repeat(arrays[name], 2, axis=2)
    out = convert(0, "pi0, ", altered(source, scratch / "two", double), scratch / "two-out",
                  "--precision", "float32", "--horizon", "10")
    one, two = actions(converted), actions(out)
    check(one.shape == two.shape and np.allclose(one, two, rtol=1e-4, atol=1e-5),
          "two equal key/value heads act as one")

    strange = altered(source, scratch / "strange", lambda a: a.update(ema_decay=np.ones(3)))
    convert(0, "warning: ema_decay", strange, scratch / "strange-out")


def lora(scratch, source):
    """Base weights that lack exactly the update: merged, they are the model again.

    openpi multiplies by a, then by b, each with the einsum of the weight and one axis replaced by
    the rank L: "BTD,NDL->BTNL", "BTNL,NLH->BTNH" for q, but "BTNH,NHL->BTL", "BTL,NLD->BTD" for
    the output, where n in a and n in b are two different sums.
    """
    def separate(arrays):
        rng = np.random.default_rng(1)
        updates = {"attn/q_einsum{}/w": "lndr,lnrh->lndh",
                   "attn/kv_einsum{}/w": "lckdr,lckrh->lckdh",
                   "attn/attn_vec_einsum{}/w": "lnhr,lmrd->lnhd",
                   "mlp{}/gating_einsum": "lcdr,lcrm->lcdm", "mlp{}/linear": "lmr,lrd->lmd"}
        for path, equation in updates.items():
            for suffix in ("", "_1"):
                name = "PaliGemma/llm/layers/" + path.format(suffix)
                w = arrays[name]
                a = 0.05 * rng.standard_normal((*w.shape[:-1], 4), dtype=np.float32)
                b = 0.05 * rng.standard_normal((*w.shape[:-2], 4, w.shape[-1]), dtype=np.float32)
                scale = np.float32(0.5 if "attn" in path else 1)
                arrays[name] = w - scale * np.einsum(equation, a, b)
                base = name[:-1] if name.endswith("/w") else name + "_"
                arrays[base + "lora_a"], arrays[base + "lora_b"] = a, b

    folder = altered(source, scratch / "lora", separate)
    out = convert(0, "LoRA updates are merged", folder, scratch / "lora-out", "--lora-scale", "0.5")
    same_stages(scratch, "tiny-pi0", out, "LoRA")

    def half(arrays):
        separate(arrays)
        del arrays["PaliGemma/llm/layers/mlp_1/linear_lora_b"]
    convert(3, "mlp_1/linear_lora_b do not fit", altered(source, scratch / "half", half),
            scratch / "half-out")


def bad_checkpoints(scratch, source):
    out, in_proj = scratch / "bad-out", "action_in_proj/kernel"
    q = "PaliGemma/llm/layers/attn/q_einsum_1/w"
    changes = {
        "removed": (lambda a: a.pop(in_proj), f"lacks {in_proj}"),
        "named": (lambda a: a.update({"action_inp/kernel": a.pop(in_proj)}), "action_inp/kernel"),
        "both": (lambda a: a.update({"time_mlp_in/bias": a["state_proj/bias"]}), "arrays of both"),
        "neither": (lambda a: [a.pop(p) for p in list(a) if "_norm_1" in p or "state_proj" in p or
                               "time_mlp" in p], "neither pi0"),
        "shape": (lambda a: a.update({q: a[q][:, :3]}), "q_einsum_1/w is float32 [3, 3, 32, 16]"),
        "rank": (lambda a: a.update({q: a[q][0]}), "expected 4 axes"),
        "type": (lambda a: a.update({q: a[q].astype(np.int32)}), "q_einsum_1/w is int32"),
        "nan": (lambda a: a[q].put(7, np.nan), "q_einsum_1/w holds values that are not finite")}
    for name, (change, message) in changes.items():
        convert(3, message, altered(source, scratch / name, change), out)

    chunk = altered(source, scratch / "chunk", lambda a: None)
    store = ts.KvStore.open(store_of(chunk)).result()
    store.write("params.action_in_proj.kernel/0.0", None).result()
    convert(3, in_proj, chunk, out)

    for name, damage in (("cut", lambda f: f.write_bytes(f.read_bytes()[:-20000])),
                         ("gone", lambda f: f.unlink())):
        folder = shutil.copytree(source, scratch / name)
        damage(max(folder.rglob("d/*"), key=lambda f: f.stat().st_size))
        convert(3, "cannot be read; is the download complete?", folder, out)
    (folder / "params/manifest.ocdbt").unlink()
    convert(3, "neither manifest.ocdbt nor arrays", folder, out)
    convert(3, "has no folder params/", GOLDEN, out)
    convert(3, "the folder above it", source / "params", out)
    convert(3, "no-such", scratch / "no-such", out)


def bad_places(scratch, source, converted):
    """Arguments, folders that are taken, and an interrupted run."""
    convert(2, "not empty", source, converted)
    convert(2, "is a JAX checkpoint itself", source, source, "--force")
    convert(3, "nowhere", source, scratch / "nowhere/out")
    convert(2, "invalid choice", source, scratch / "x", "--precision", "fp8")
    check(called(PYTHON, "-B", CONVERTER)[0] == 2, "no arguments: usage")
    check(called(PYTHON, "-B", CONVERTER, "-h")[0] == 0, "-h")
    (converted / "tokenizer.model").write_text("mine")
    convert(0, "bfloat16", source, converted, "--force")
    check((converted / "tokenizer.model").read_text() == "mine", "--force keeps other files")
    check('"bfloat16"' in (converted / "config.json").read_text(), "--force replaces")

    # The signal arrives when the weights are written and not yet in place.
    program = ("import os, signal, sys; sys.path.insert(0, sys.argv.pop(1)); "
               "import convert_orbax as c; c.flush = lambda file: os.kill(os.getpid(), "
               "signal.{}); sys.exit(c.main())")
    before = (converted / "model.safetensors").read_bytes()
    for name in ("SIGINT", "SIGTERM"):
        for out, force in ((scratch / "stopped", ()), (converted, ("--force",))):
            code, _, err = called(PYTHON, "-B", "-c", program.format(name), CONVERTER.parent,
                                  source, out, *force)
            check(code == 130 and "interrupted" in err and "Traceback" not in err,
                  f"{name}: exit {code}: {err}")
    check(not (scratch / "stopped").exists(), "an interrupted conversion leaves nothing")
    check((converted / "model.safetensors").read_bytes() == before and
          not list(converted.glob(".convert*")), "an interrupted one keeps what was there")


with tempfile.TemporaryDirectory(dir=BUILD) as temporary:
    place = pathlib.Path(temporary)
    pi0 = both_models(place, "pi0")
    both_models(place, "pi05")
    other_spellings(place, ORBAX / "tiny-orbax-pi0", pi0)
    lora(place, ORBAX / "tiny-orbax-pi0")
    bad_checkpoints(place, ORBAX / "tiny-orbax-pi0")
    bad_places(place, ORBAX / "tiny-orbax-pi0", pi0)
sys.exit(check.end())
