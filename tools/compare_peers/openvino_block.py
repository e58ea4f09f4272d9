"""One block of measurements in OpenVINO: a JSON object as the last line of standard output.

    openvino_block.py CASE PRECISION THREADS CALLS FOLDER [--export-only]

CASE: JSON, sizes as make_goldens reads them. PRECISION: a key of PRECISIONS. FOLDER: keeps the
models; those that are not there yet are written by exported_parts.py, in a process of its own.
"""

import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import openvino as ov

HERE = pathlib.Path(__file__).resolve().parent
PARTS = ("vision", "prefix", "step")
SIZES = ("policy", "cameras", "vision", "vlm", "expert", "horizon", "max_token_len")
# The kind of the models, the type of what is not int8, and how many inputs of a product share a
# scale that is found during the call (0: none). OpenVINO finds scales only if the type is f32.
PRECISIONS = {
    "f32": ("f32", "f32", 0),
    "bf16": ("f32", "bf16", 0),
    "f16": ("f32", "f16", 0),
    "int8-dq32": ("int8-weights", "f32", 32),
    "int8-dq128": ("int8-weights", "f32", 128),
    "int8-static": ("int8-static", "bf16", 0),
}


def keep_in_16_bits(model, hint):
    """Keys and values pass from the prefix to the steps in the type in which steps need them."""
    prepare = ov.preprocess.PrePostProcessor(model)
    for ports, find in ((model.inputs, prepare.input), (model.outputs, prepare.output)):
        for name in (port.any_name for port in ports):
            if name.startswith(("key.", "value.")):
                find(name).tensor().set_element_type(getattr(ov.Type, hint))
    return prepare.build()


def load(folder, part, precision, threads=0):
    """`threads`: 0 for OpenVINO's own number."""
    kind, hint, group = PRECISIONS[precision]
    core = ov.Core()
    model = core.read_model(folder / f"{part}.{kind}.xml")
    if hint != "f32":
        model = keep_in_16_bits(model, hint)
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
    }
    options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    return core.compile_model(model, "CPU", options).create_infer_request()


def time_embedding(case, time):
    """lerobot's create_sinusoidal_pos_embedding of one time, [1, width]."""
    fraction = np.linspace(0.0, 1.0, case["expert"]["width"] // 2)
    shortest, longest = case["min_period"], case["max_period"]
    angle = 2 * np.pi * time / (shortest * (longest / shortest) ** fraction)
    return np.concatenate([np.sin(angle), np.cos(angle)])[None].astype(np.float32)


def connect(requests, data):
    """Gives every model the memory of its inputs; outputs of one are inputs of the next."""
    vision, prefix, step = (requests[part] for part in PARTS)
    vision.get_tensor("pixels").data[:] = data["pixels"]
    prefix.set_tensor("image_tokens", vision.get_tensor("image_tokens"))
    prefix.get_tensor("text").data[:] = data["text"]
    for name in (port.any_name for port in prefix.model_outputs):
        step.set_tensor(name, prefix.get_tensor(name))
    if "state" in data:
        step.get_tensor("state").data[:] = data["state"]


def call(requests, case, noise):
    """Actions, and the seconds of every part."""
    vision, prefix, step = (requests[part] for part in PARTS)
    marks = [time.perf_counter()]
    for request in (vision, prefix):
        request.infer()
        marks.append(time.perf_counter())
    x, steps = noise, case["num_steps"]
    for i in range(steps):
        step.get_tensor("x").data[:] = x
        step.get_tensor("time").data[:] = time_embedding(case, 1 - i / steps)
        step.infer()
        x = x - step.get_tensor("velocity").data / steps
    marks.append(time.perf_counter())
    return x, dict(zip(PARTS, np.diff(marks).tolist()))


def sizes(case):
    return {name: case[name] for name in SIZES}


def export(case, kind, folder):
    """Seconds that it took to write the models which are not yet in the folder."""
    start = time.perf_counter()
    suffix = "onnx" if kind.startswith("onnx") else "xml"
    if all((folder / f"{part}.{kind}.{suffix}").exists() for part in PARTS):
        return 0.0
    program = [sys.executable, HERE / "exported_parts.py", json.dumps(case), folder, kind]
    finished = subprocess.run([str(word) for word in program], stdout=sys.stderr)
    if finished.returncode:
        sys.exit(f"the models were not written to {folder}")
    return time.perf_counter() - start


def anonymous_gb():
    """What the program holds now, without pages of files, which the kernel can take back."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(kilobytes) * 1024 / 1e9


def measure(case, load, calls, folder):
    if json.loads((folder / "sizes.json").read_text()) != sizes(case):
        sys.exit(f"{folder} has models of other sizes: remove it or name another folder")
    data = dict(np.load(folder / "inputs.npz"))
    start = time.perf_counter()
    requests = {part: load(part) for part in PARTS}
    connect(requests, data)
    result = {"load_seconds": time.perf_counter() - start}
    measured = []
    for _ in range(1 + calls):
        actions, seconds = call(requests, case, data["noise"])
        measured.append(seconds)
    if not np.isfinite(actions).all():
        sys.exit("the actions are not finite: these times mean nothing")
    if "actions" in data and data["steps"] == case["num_steps"]:
        error = np.linalg.norm(actions - data["actions"]) / np.linalg.norm(data["actions"])
        result["relative_l2"] = float(error)
    result["seconds"] = [sum(seconds.values()) for seconds in measured[1:]]
    result["warm_up_seconds"] = sum(measured[0].values())
    result["parts"] = {p: statistics.median(seconds[p] for seconds in measured[1:]) for p in PARTS}
    result["anonymous_gb"] = anonymous_gb()
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return result


def main(load, kinds):
    """`load(folder, part, precision, threads)`: a request of OpenVINO, or what is used like one.
    `kinds`: the kind of the models for each precision."""
    case, precision, threads, calls, folder = sys.argv[1:6]
    case, folder = json.loads(case), pathlib.Path(folder)
    result = {"export_seconds": export(case, kinds[precision], folder)}
    if "--export-only" not in sys.argv:

        def load_part(part):
            return load(folder, part, precision, int(threads))

        result |= measure(case, load_part, int(calls), folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main(load, {precision: values[0] for precision, values in PRECISIONS.items()})
