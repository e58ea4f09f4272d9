#!/usr/bin/env python3
"""device_options_test.py TENDON: the options of a ttnn device as a user types them, what the
command says of a device's memory, and what happens without a device."""
import sys

from environment import Checks, memory_was_bounded, printed

FAKE = ("--backend", "ttnn", "--device", "fake")
check = Checks()
expect = check.expect


def doctor():
    kinds = {t["name"] for t in printed("doctor")["tests"]}
    check(kinds >= {"host", "simulator", "chip"}, f"doctor lists kinds of tests: {kinds}")
    expect(0, "tests that can run here", "doctor")
    expect(0, "scripts/ttnn-sim makes it", "doctor", "--ttnn-sim", "no/such/folder")


def missing_devices():
    expect(5, "--device fake", "run", "demo", "--backend", "ttnn")
    expect(2, "expected fake, sim or chip", "run", "demo", "--backend", "ttnn", "--device", "gpu")
    expect(5, "scripts/ttnn-sim", "run", "demo", "--backend", "ttnn", "--ttnn-sim", "no/such")
    expect(5, "no/such/python", "run", "demo", "--backend", "ttnn", "--ttnn-python",
           "no/such/python")
    expect(2, "there are: bf16, bfp8", "run", "demo", "--backend", "ttnn", "--precision", "int8")


def options():
    chosen = ("--grid", "4x2", "--fidelity", "hifi2", "--memory", "l1", "--precision",
              "bf16,expert=bfp8", "--on-device", "patches,times")
    for verb in (("run",), ("coverage", "--warm-up", "0"), ("bench", "--calls", "1")):
        shown = printed(*verb, "demo", *FAKE, *chosen)
        check(shown["method"] == "fake device, bf16,expert=bfp8, hifi2, results in L1, patches and "
              "times on the device", f"{verb} uses the options: {shown['method']}")
        memory = shown["device_memory"]
        check(0 < memory["in_use"]["dram"] <= memory["peak"]["dram"] < memory["size"]["dram"] and
              0 < memory["peak"]["l1_of_a_core"] <= memory["size"]["l1_of_a_core"],
              f"{verb} tells the memory of the device: {memory}")
        expect(0, "at its peak: DRAM", *verb, "demo", *FAKE)
    check("device_memory" not in printed("run", "demo"), "the processor has no memory of a device")
    expect(0, "ok", "validate", "demo", *FAKE, *chosen, "--module", "siglip.norm")
    expect(2, "--grid 8by7: expected columns by rows", "run", "demo", *FAKE, "--grid", "8by7")
    expect(2, "--device-id 1: the model of the device is one", "run", "demo", *FAKE, "--device-id",
           "1")


def opened():
    device = printed("doctor", "--open", "--device", "fake", "--grid", "8x7")["device"]
    check(device["grid"] == "8x7, 56 cores" and device["arch"] == "wormhole_b0" and
          "12.88 GB" in device["DRAM"] and "0.81.1" in device["library"], f"a device: {device}")
    expect(0, "wormhole_b0", "doctor", "--open", "--device", "fake")
    expect(5, "the ttnn backend needs a device", "doctor", "--open")


def tuned():
    tried = printed("tune", "demo", "--device", "fake", "--steps", "2", "--memory", "l1")["tried"]
    check(len(tried) == 20 and {row["memory"] for row in tried} == {"l1"}, "what is given is kept")
    errors = [row["relative_l2"] for row in tried]
    check(errors == sorted(errors) and 0 < errors[0] < 0.05, f"the most accurate first: {errors}")
    best, worst = tried[0], tried[-1]
    check(best["fidelity"] in ("hifi3", "hifi4") and worst["fidelity"] == "lofi",
          f"fidelity decides: {best} {worst}")
    dram = {row["precision"]: row["device_memory"]["peak"]["dram"] for row in tried}
    check(dram["bfp8"] < dram["bf16,vlm=bfp8"] < dram["bf16"], f"formats decide memory: {dram}")
    expect(0, "L1 kB per core", "tune", "demo", "--device", "fake", "--steps", "1", "--precision",
           "bf16", "--fidelity", "hifi4")
    expect(2, "tune is for ttnn", "tune", "demo", "--backend", "cpu")
    expect(5, "the ttnn backend needs a device", "tune", "demo")


doctor()
missing_devices()
options()
opened()
tuned()
check(memory_was_bounded(), "memory")
sys.exit(check.end())
