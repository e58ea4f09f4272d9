#!/usr/bin/env python3
"""command_line_test.py TENDON: runs the command with good and bad arguments and checks exit
codes and messages."""
import json
import pathlib
import re
import shutil
import struct
import sys
import tempfile
from xml.etree import ElementTree

from environment import (DATA, FLOWER, TOKENIZER, Checks, ends, memory_was_bounded, printed,
                         read_safetensors, safetensors, tendon)

LEROBOT = DATA / "golden/tiny-checkpoint-lerobot-pi0"
OPENPI = DATA / "golden/tiny-checkpoint-openpi-pi05"
# What a robot with 14 joints and one camera sees.
SCENE = ("--prompt", "pick up the red cube", "--state", ",".join(["0.25"] * 14), "--image",
         f"base_0_rgb={FLOWER}")
ALOHA = ("synthetic:pi0-small", "--robot", "aloha")
check = Checks()
expect = check.expect


def copied(scratch, source, name):
    target = scratch / name
    shutil.copytree(source / "checkpoint", target)
    shutil.copy(source / "config.json", target / "golden.json")
    return target


def opened(folder):
    """The arguments that open a copy."""
    return folder, "--config", folder / "golden.json"


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def usage():
    expect(0, "Subcommands", "-h")
    for verb in ("run", "demo", "inspect", "version", "bench", "coverage", "validate", "doctor",
                 "replay", "velocity", "certify", "tune"):
        expect(0, "--json", verb, "-h")
    expect(0, "tendon 0.", "version")
    expect(2, "a verb is needed")
    expect(2, "nearest: 'inspect'", "inspct")
    expect(2, "nearest: '--prompt'", "run", "demo", "--promt", "x")
    expect(2, "nearest: 'reference'", "run", "demo", "--backend", "referense")
    expect(2, "--dialect: robo-arena not in {openpi,roboarena}", "replay", "no/such/folder", "demo",
           "--dialect", "robo-arena")
    for device, backends in (((), ("cpu", "cuda")), (("--device", "fake"), ("ttnn",))):
        found = printed("run", "demo", "--backend", "auto", *device)
        check(found["backend"] in backends and
              f"--backend auto is {found['backend']} here" in found["notes"], f"auto: {found}")
    # Built or not, with a GPU or without: what was found.
    expect(5, "cuda backend", "run", "demo", "--backend", "cuda", "--device", "99")
    expect(2, "number of a GPU", "run", "demo", "--backend", "cuda", "--device", "fake")
    expect(3, "no such/model is no folder", "run", "no such/model")
    expect(2, "expected synthetic:pi0", "run", "synthetic:pi1")


def runs(scratch):
    result = printed("run", "demo", "--seed", "3")
    check(len(result["actions"]) == 10 and len(result["actions"][0]) == 3,
          "run demo --json has 10 rows of 3")
    check(result["fallback"] == 0 and result["native"] > 100 and "denoise" in result["stage_ms"],
          "op counts and stage times")
    check(result["flops_done"] > 0 and result["flops_skipped"] > 0 and result["method"],
          "run states work, skipped work and how products are made")
    first = [row[0] for row in result["actions"]]
    shown = ends(0, "", "run", "demo", "--seed", "3").stdout.splitlines()[1].split()
    check(shown[1:5] == [f"{v:.5f}" for v in (first[0], min(first), max(first), first[-1])],
          f"the table of run shows the actions of its JSON: {shown}")
    check(printed("version")["instruction_sets"][0] == "plain", "version lists isas")
    again = printed("run", "demo", "--seed", "3", "--threads", "1")
    check(again["actions"] == result["actions"], "the same seed gives the same actions")
    expect(0, "backend cpu", "run", "demo", "--out", scratch / "a.json", "--plot",
           scratch / "a.svg")
    check((scratch / "a.svg").read_text().startswith("<svg"), "--plot writes an SVG")
    check("actions" in json.loads((scratch / "a.json").read_text()), "--out writes JSON")
    expect(0, "action_0", "run", "demo", "--out", scratch / "a.npy")
    check((scratch / "a.npy").read_bytes()[:6] == b"\x93NUMPY", "--out writes NPY")
    expect(0, "weights are synthetic", "run", *ALOHA)
    expect(0, "demo", "inspect", "demo")
    expect(3, "MODEL is demo, demo:pi05", "inspect", "demo:pi1")
    expect(0, "0 differences", "inspect", "demo", "--diff", "demo")
    expect(0, '"path":"/config/policy"', "inspect", "demo", "--diff", "demo:pi05", "--json")
    expect(0, "3238048528", "inspect", "synthetic:pi0", "--json")
    expect(0, "3353433872", "inspect", "synthetic:pi05", "--json")
    expect(0, "horizon", "inspect", "synthetic:pi05", "--config", "pi05_droid")
    saved = scratch / "saved.json"
    towel = ("inspect", "synthetic:pi0-small", "--tendon-json", "--config")
    shown = ends(0, "fold the towel", *towel, "pi0_aloha_towel").stdout
    saved.write_text(shown)
    check(ends(0, "", *towel, saved).stdout == shown,
          "a robot that was printed as a tendon.json is read back")
    expect(4, "'front' is missing", "run", "synthetic:pi0-small", "--config",
           DATA / "../../examples/lab_arm.json", "--state", "1,2,3,4,5,6,7", "--image",
           f"wrist={FLOWER}")
    hostile = scratch / "hostile.json"
    hostile.write_text(json.dumps({"\x1b[2Jcleared": 1}))
    expect(2, "unknown key '\\x1b[2Jcleared'", "inspect", "synthetic:pi0", "--config", hostile)
    for written, arguments in ((True, ()), (True, ("--state-in-prompt",)),
                               (False, ("--no-state-in-prompt",))):
        prompt = printed("inspect", "demo:pi05", *arguments)["prompt"]
        check(prompt["state_in_prompt"] is written, f"pi0.5 {arguments}: its state is written")
    usual, light, dark = (printed("run", "synthetic:pi05-small", "--image", f"base_0_rgb={FLOWER}",
                                  "--prompt", "x", "--steps", "1", *bars)["actions"]
                          for bars in ((), ("--no-dark-bars",), ("--dark-bars",)))
    check(usual == light != dark, "bars around a picture are dark only where that is asked for")


def closes_the_loop(scratch):
    result = printed("demo", "--episodes", "4", "--seed", "5")
    check(result["episodes"] == 4 and len(result["rows"]) == 4, "demo --json has a row per episode")
    solved = [row["solved"] for row in result["rows"]]
    check(result["success_rate"] == sum(solved) / 4 and sum(solved) >= 3,
          "most episodes are solved, and success_rate says how many")
    low, high = result["interval"]
    check(low < result["success_rate"] <= high, "the interval holds the rate")
    check({"reach", "push", "reach, unseen pair", "push, unseen pair"} == set(result["tasks"]),
          "every kind of task is there")
    again = printed("demo", "--episodes", "2", "--seed", "5", "--threads", "1")
    check(again["rows"] == result["rows"][:2], "episodes follow from the seed")
    gif, svg = scratch / "a.gif", scratch / "a.svg"
    expect(0, "reach the cyan disc", "demo", "--prompt", "Reach the cyan disc", "--episodes", "1",
           "--gif", gif, "--svg", svg)
    check(gif.read_bytes()[:6] == b"GIF89a", "--gif writes a GIF")
    check(ElementTree.parse(svg).getroot().tag.endswith("svg"), "--svg writes well-formed SVG")
    expect(0, "demo:pi05", "demo", "demo:pi05", "--episodes", "1", "--precision", "int8")
    expect(0, "95 % interval", "demo", "--episodes", "1", "--quiet", "--latency", "200", "--rtc")
    expect(1, "--at-least", "demo", "--verb", "push", "--episodes", "1", "--blank-images",
           "--at-least", "0.9")
    expect(2, "reach the COLOUR SHAPE", "demo", "--prompt", "make coffee")
    expect(2, "300 is 3 actions", "demo", "--latency", "300", "--rows", "3")
    expect(2, "would not be used", "demo", "demo:pi05", "--url", "localhost:1")
    expect(7, "localhost:1", "demo", "--url", "localhost:1", "--episodes", "1")
    expect(4, "cannot write", "demo", "--episodes", "1", "--gif", scratch / "no" / "a.gif")
    expect(2, "3 actions, this policy", "demo", "synthetic:pi0-small", "--episodes", "1")


def audits(scratch):
    fake = ("--backend", "ttnn", "--device", "fake")
    audit = printed("coverage", "demo", *fake)
    total = audit["total"]
    check(total["device_share"] == 1 and total["downloads"] == 1,
          "coverage counts calls and transfers")
    check(audit["transfers_between_steps"] == 0, "nothing moves between denoising steps")
    check({c["where"] for c in audit["calls"]} == {"device"}, "every call says where it ran")
    out = ends(0, "", "coverage", "demo", *fake).stdout
    shown = next(line for line in out.splitlines() if line.startswith("all")).split()
    check(shown[1:10] == [str(total["calls"]), str(total["device"]), "0", "100.0%", "–", "–",
                          "100.00%", "–", f"{total['bytes'] / 1e6:.2f}"],
          f"coverage shows its JSON, and no time of a replay: {shown}")
    timed = printed("coverage", "demo")
    by_module = sum(module["ms"] for module in timed["by_module"].values())
    check(0 < by_module < 1.001 * timed["total"]["ms"] and "vlm.layer.0" in timed["by_layer"],
          "coverage tells the time of each module and layer")
    host = {what: row["ms"] for what, row in timed["host_work"].items()}
    check(len(host) == 5 and 0 < host["pictures to patches, upload"] < 1000
          and 0 < host["state and tokens"] < 1000, f"coverage times the host's own work: {host}")
    check(timed["by_module"]["common"]["device_share"] is None, "nothing has no share")
    check(f"uploads {total['uploads']} ({total['bytes_up'] / 1e3:.1f} kB)" in out, "and transfers")
    wanted = scratch / "expected.txt"
    expect(0, "op class", "coverage", "demo", *fake, "--write-expectation", wanted)
    expect(0, "module", "coverage", "demo", *fake, "--expect", wanted)
    norms = re.search("siglip layer_norm device \\d+", wanted.read_text())[0]
    wanted.write_text(wanted.read_text().replace(norms, "siglip layer_norm device 1"))
    expect(1, f"+ {norms}", "coverage", "demo", *fake, "--expect", wanted)
    expect(0, "suffix", "coverage", "demo", *fake, "--host-modules", "suffix,prefix")
    expect(2, "nearest: 'suffix'", "coverage", "demo", *fake, "--host-modules", "sufix")
    for model in ("demo:pi0", "demo:pi05"):
        host = printed("coverage", model, *fake, "--host-modules", "all", "--warm-up", "0")["total"]
        check(host["device"] == 0 and host["host"] > 250, f"all modules on the host: {host}")
    after = printed("coverage", "demo", *fake, "--warm-up", "0", "--against",
                    "host:suffix,prefix")["after"]
    suffix, moved = (after["by_module"]["suffix"][k] for k in ("device_share", "bytes_moved"))
    check(suffix == {"before": 1, "after": 0} and moved["before"] == 0 < moved["after"] and
          after["by_module"]["siglip"]["device_share"]["after"] == 1 and
          after["total"]["ms"] == {"before": None, "after": None},
          f"before stands beside after: {suffix} {moved}")
    expect(0, "against cpu: cpu (", "coverage", "demo", *fake, "--warm-up", "0", "--against", "cpu")
    ranking = printed("coverage", "demo", *fake, "--warm-up", "0", "--against",
                      "host:each")["ranking"]
    check([r["bytes"] for r in ranking] == sorted((r["bytes"] for r in ranking), reverse=True) and
          {"vlm", "siglip", "expert", "suffix"} <= {r["module"] for r in ranking},
          f"modules are ranked by what moving them costs: {ranking}")
    expect(0, "more ms", "coverage", "demo", "--against", "host:each")
    expect(2, "name modules", "coverage", "demo", "--against", "host:")
    out = ends(0, "", "bench", "demo", *fake, "--calls", "1", "--json").stdout
    result = json.loads(out)
    speeds = re.findall('"[a-z_]*(?:per_s|gflops|utilisation|fraction|forward|speed|seconds)":'
                        '(?!0(?:.0)?[,}])', out)
    check(result["simulated"] and not speeds, f"no speed comes from a simulated device: {speeds}")
    check(min(result["stages"][s]["p50_ms"] for s in ("vision", "prefill", "denoise")) > 0,
          "the stages of a replayed call have times")
    expect(2, "is simulated", "bench", "demo", *fake, "--calls", "1", "--reference")
    expect(0, "say nothing about a chip", "bench", "demo", *fake, "--calls", "1")
    expect(0, "times as fast as the reference", "bench", "demo", "--calls", "1", "--reference")


def velocities(scratch):
    noisy, out = scratch / "noisy.json", scratch / "velocity.json"
    error = ends(4, "have 2 values, expected ", "velocity", "demo", "--noisy", "0,1").stderr
    rows, columns = map(int, re.search(r" \((\d+) rows of (\d+)\)", error).groups())
    noisy.write_text(json.dumps([[0.5] * columns] * rows))
    result = printed("velocity", "demo", "--noisy", noisy, "--t", "0.75", "--out", out)
    written = json.loads(out.read_text())["actions"]
    check(result["t"] == 0.75 and result["velocity"] == written and
          len(written) == rows and len(written[0]) == columns, "velocity writes what it prints")
    expect(0, "root mean square", "velocity", "demo", "--noisy", noisy)
    expect(4, "expected 0 (actions) to 1 (noise)", "velocity", "demo", "--noisy", noisy, "--t", "2")
    expect(2, "--noisy is required", "velocity", "demo")


def validations(scratch):
    fake = ("--backend", "ttnn", "--device", "fake")
    report = scratch / "report.html"
    shown = ends(0, "", "validate", "synthetic:pi05-small", *fake, "--report", report).stdout
    check(re.search("PCC +at least +asked +relative L2 +at most +max error +ms +reference ms\n",
                    shown) and re.search("\nmasks +1.0000000000 +1.0000000000 +1.00 ", shown),
          f"validate shows a row per module: {shown[:300]}")
    rows = len(printed("validate", "synthetic:pi05-small", *fake)["modules"])
    check(rows > 60, "validate --json has a row per tensor")
    check(report.read_text().count("<svg") == rows, "the report has a picture per tensor")
    check(report.read_text().count("at most") == rows, "the report has a bound of relative L2")
    modules = printed("validate", *fake, "--module", "siglip")["modules"]
    check(modules and all(
        m["passed"] and m["failed"] == "" and m["pcc"] >= m["gate"] > 0.99
        and m["relative_l2"] <= m["relative_l2_gate"] < 0.14 for m in modules),
          "validate --json has PCC and relative L2 of modules, within their gates")
    check(all(m["ms"] is None and m["asked"] <= m["pcc"] for m in modules),
          "no time comes from a simulation, and what was asked is reached")
    modules = printed("validate", "demo", "--module", "siglip")["modules"]
    check(all(0 < m["ms"] < 1e4 and 0 < m["reference_ms"] < 1e4 for m in modules),
          "rows have times")
    expect(2, "nearest: 'siglip.norm'", "validate", *fake, "--module", "siglip.nrm")
    folder = copied(scratch, DATA / "golden/tiny-checkpoint-lerobot-pi0", "validated")
    expect(0, "sound", "validate", *opened(folder), *TOKENIZER, "--health-only")
    expect(0, "actions", "validate", *opened(folder), *TOKENIZER, *fake)
    (folder / "model.safetensors").write_bytes(b"not a tensor")
    expect(1, "NOT SOUND", "validate", *opened(folder), *TOKENIZER, *fake)


def bad_inputs(scratch):
    grey = scratch / "grey.pgm"
    grey.write_bytes(b"P5\n1 1\n255\nx")
    expect(4, "1 channel", "run", "demo", "--image", f"top={grey}")
    expect(4, "cannot open image", "run", "demo", "--image", "top=nothing.png")
    reach = ("--prompt", "reach the red disc")
    expect(0, "'gripper' is absent", "run", "demo", *reach, "--image", f"top={FLOWER}")
    expect(0, "left_waist", "run", *ALOHA, *reach, "--image", f"cam_high={FLOWER}")
    expect(4, "nearest: 'top'", "run", "demo", *reach, "--image", f"tpo={FLOWER}")
    expect(2, "expected NAME=FILE", "run", "demo", "--image", "x.png")
    expect(4, "expects 3", "run", "demo", "--state", "1,2")
    expect(4, "expects 3", "run", "demo", "--state", ",".join(["0.12345678901234567"] * 40))
    expect(4, "finite", "run", "demo", "--state", "nan,nan,nan")
    expect(4, "empty", "run", "demo", "--prompt", "")
    expect(0, "was cut to 12", "run", "demo", "--prompt", "reach the red disc " * 20)
    expect(0, "was cut to 48", "run", *ALOHA, "--prompt", "x" * 300)
    expect(4, "steps", "run", "demo", "--steps", "0")


def bad_checkpoints(scratch):
    good = copied(scratch, LEROBOT, "good")
    expect(0, "lerobot", "inspect", *opened(good))
    expect(3, "heads of 72", "inspect", good)
    expect(3, "tokenizer", "run", *opened(good), "--prompt", "x")

    weights = (good / "model.safetensors").read_bytes()
    cut = copied(scratch, LEROBOT, "cut")
    (cut / "model.safetensors").write_bytes(weights[:-100])
    expect(3, "model.safetensors", "inspect", *opened(cut))
    (cut / "model.safetensors").write_bytes(weights.replace(b"action_in_proj", b"action_it_proj"))
    expect(3, "action_in_proj", "inspect", *opened(cut))
    tensors = read_safetensors(good / "model.safetensors")[1]
    (name,) = (name for name in tensors if name.endswith("action_out_proj.weight"))
    entry, content = tensors[name]
    write_tensors(cut / "model.safetensors",
                  {**tensors, name: (entry, struct.pack("<f", float("nan")) + content[4:])})
    expect(1, "action_out_proj.weight", "validate", *opened(cut), *TOKENIZER, "--health-only")
    expect(3, "action_out_proj.weight", "serve", *opened(cut), *TOKENIZER, "--port", "0",
           "--admin-port", "0")
    (cut / "model.safetensors").unlink()
    expect(3, "neither model.safetensors", "inspect", *opened(cut))

    stats = copied(scratch, LEROBOT, "stats")
    state_file = next(stats.glob("policy_preprocessor_step_*"))
    state_file.unlink()
    expect(3, state_file.name, "inspect", *opened(stats))
    expect(0, "not normalised", "inspect", *opened(stats), "--statistics", "none", "--json")
    edit_json(stats / "policy_preprocessor.json",
              lambda c: c["steps"][0].update(registry_name="rename_observation_processor"))
    expect(3, "nearest: 'rename_observations_processor'", "inspect", *opened(stats))

    size = copied(scratch, LEROBOT, "size")
    edit_json(size / "config.json",
              lambda c: c["input_features"]["observation.state"].update(shape=[13]))
    expect(3, "expected [13]", "inspect", *opened(size))
    edit_json(size / "config.json", lambda c: c.update(type="pi05"))
    expect(3, "the tensors are pi0", "inspect", *opened(size))

    openpi = copied(scratch, OPENPI, "openpi")
    expect(0, "openpi", "inspect", *opened(openpi))
    (openpi / "assets/demo/norm_stats.json").unlink()
    expect(3, "norm_stats.json", "inspect", *opened(openpi))


def write_tensors(path, tensors):
    header, data = {}, b""
    for name, (entry, content) in tensors.items():
        header[name] = {**entry, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    path.write_bytes(safetensors(json.dumps(header), data))


def layouts(scratch):
    """The same weights and settings, stored in other ways, give the same actions."""

    def actions(folder, dims):
        return printed("run", *opened(folder), *TOKENIZER, *SCENE[:3], ",".join(["0.25"] * dims),
                       *SCENE[4:])["actions"]

    plain = actions(copied(scratch, LEROBOT, "plain"), 14)

    sharded = copied(scratch, LEROBOT, "sharded")
    tower = "paligemma.model.vision_tower."  # as old releases named it, without a first "model."
    tensors = {n.removeprefix("model.").replace(tower + "vision_model.", tower): t
               for n, t in read_safetensors(sharded / "model.safetensors")[1].items()}
    (sharded / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        write_tensors(sharded / file, {n: t for n, t in tensors.items() if where[n] == file})
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    for file in ("policy_preprocessor.json", "policy_postprocessor.json"):
        edit_json(sharded / file, lambda c: c["steps"].sort(
            key=lambda s: s["registry_name"] != "device_processor"))
    check(actions(sharded, 14) == plain, "shards, old names, steps in another order: the same")
    edit_json(index, lambda c: c["weight_map"].update({next(iter(where)): "../model.safetensors"}))
    expect(3, "not a file name in the same folder", "inspect", *opened(sharded))

    actions(copied(scratch, OPENPI, "five_keys"), 8)
    from_jax = copied(scratch, OPENPI, "no_horizon")
    edit_json(from_jax / "config.json", lambda c: c.pop("action_horizon"))
    (from_jax / "golden.json").rename(from_jax / "tendon.json")
    edit_json(from_jax / "tendon.json", lambda c: c.pop("horizon"))
    config = printed("inspect", from_jax, "--config", "pi05_droid")["config"]
    check(config["horizon"] == 15,
          "a converted JAX checkpoint gets its horizon from the training config")


def said_by_every_verb(scratch):
    """What would make actions other than those of the training is refused, or one warning."""
    guessed = copied(scratch, OPENPI, "guessed")
    edit_json(guessed / "config.json", lambda c: c.pop("action_horizon"))
    edit_json(guessed / "golden.json", lambda c: c.pop("horizon"))
    strange = copied(scratch, LEROBOT, "strange")
    edit_json(strange / "config.json", lambda c: c.update(mirror_arms="\x1b[2Jyes"))
    for verb, more, refusal in (
            ("run", SCENE, 3), ("serve", ["--port", "0"], 3),
            ("convert", [scratch / "said.safetensors"], 3), ("inspect", [], 3),
            ("bench", ["--calls", "1", *SCENE], 3), ("coverage", SCENE, 3),
            ("validate", ["--health-only"], 1)):
        expect(refusal, "does not tell the action horizon", verb, *opened(guessed), *TOKENIZER,
               *more)
        if verb == "serve":  # its log: serve_test.py
            continue
        done = tendon(verb, *opened(strange), *TOKENIZER, *more)
        lines = [line for line in done.stderr.splitlines() if line.startswith("warning: ") and
                 "mirror_arms" in line and "\x1b" not in line]
        check(done.returncode == 0 and len(lines) == 1,
              f"{verb}: exit {done.returncode}, one warning: {done.stderr}")
    expect(0, "warning: ", "inspect", scratch / "said.safetensors", "--json")


def conversions(scratch):
    """tendon convert: the same actions from one file; altered, cut and newer files are refused."""
    folder = copied(scratch, LEROBOT, "to_convert")
    model = (*opened(folder), *TOKENIZER)
    for precision in ("bf16", "int8", "f32"):
        file = scratch / f"{precision}.safetensors"
        expect(0, "self-check: same actions", "convert", *model, file, "--precision", precision)
        whole = printed("run", *model, *SCENE, "--precision", precision)
        packed = printed("run", file, *SCENE)
        check(packed["actions"] == whole["actions"], f"{precision}: converted gives the same")
    expect(0, "converted", "inspect", file)
    expect(2, "packed as f32", "run", file, *SCENE, "--json", "--precision", "bf16")
    expect(2, "packed for the cpu", "run", file, *SCENE, "--json", "--backend", "reference")
    expect(2, "already converted", "convert", file, scratch / "again.safetensors")
    expect(2, "OUT.safetensors", "convert", *model, scratch / "x.bin")
    expect(3, "cannot write", "convert", *model, scratch / "nowhere/x.safetensors")
    expect(3, "no tokenizer", "convert", *opened(folder), scratch / "y.safetensors")
    check(not list(scratch.glob("y.safetensors*")), "nothing half-written remains")

    content = file.read_bytes()
    for name, altered, message in (
            ("flipped", content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "altered"),
            ("cut", content[:-100], "cut.safetensors"),
            ("newer", content.replace(b'"tendon.format":"3"', b'"tendon.format":"4"'), "format 4")):
        (scratch / f"{name}.safetensors").write_bytes(altered)
        expect(3, message, "run", scratch / f"{name}.safetensors", *SCENE, "--json")


def benchmark(scratch):
    out = ends(0, "", "bench", "demo", "--json", "--calls", "2", "--threads", "1").stdout
    result = json.loads(out)
    check(0 < result["fraction_of_peak"] < 1, "bench states the fraction of peak")
    check(result["flops_skipped"] > 0 and result["stages"]["denoise"]["per_step_ms"] > 0,
          "bench states work and skipped work")
    slower, faster = scratch / "slower.json", scratch / "faster.json"
    for file, factor in ((slower, 1e-4), (faster, 1e4)):
        other = json.loads(out)
        for stage in other["stages"].values():
            if "fraction_of_peak" in stage:
                stage["fraction_of_peak"] *= factor
        file.write_text(json.dumps(other))
    expect(0, "faster", "bench", "demo", "--calls", "2", "--compare", slower)
    expect(1, "SLOWER", "bench", "demo", "--calls", "2", "--compare", faster)
    expect(2, "there are: f32, bf16, int8", "bench", "demo", "--precision", "fp4")
    expect(6, "--max-memory allows 0.00", "run", "synthetic:pi0", "--max-memory", "1MB")
    expect(2, "this machine has plain", "bench", "demo", "--isa", "avx9")


usage()
for part in (runs, closes_the_loop, audits, validations, velocities, bad_inputs, bad_checkpoints,
             layouts, said_by_every_verb, conversions, benchmark):
    with tempfile.TemporaryDirectory() as folder:
        part(pathlib.Path(folder))
check(memory_was_bounded(), "memory")
sys.exit(check.end())
