#!/usr/bin/env python3
"""lerobot_matrix_test.py TENDON DATA: tiny checkpoints of each release of lerobot act as there.

DATA/lerobot/matrix.tar.xz is what tools/lerobot_matrix.py stored: per release and cell the files
that save_pretrained wrote and lerobot's own actions. A cell is run in float32 and must be within
1e-5 (relative L2) of the release that saved it, or be refused with the words that are stored.
"""
import concurrent.futures
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile

TOLERANCE = 1e-5
WEIGHTS = "model.safetensors"


def read_safetensors(path):
    """The header's bytes, {name: (first, last)}, the data."""
    content = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = content[8:8 + size]
    offsets = {name: tuple(t["data_offsets"]) for name, t in json.loads(header).items()
               if name != "__metadata__"}
    return header, offsets, content[8 + size:]


class Matrix:
    """The archive, unpacked into `scratch`; weights come from the golden folders in `data`."""

    def __init__(self, archive, data, scratch):
        self.data, self.scratch, self.golden = data, pathlib.Path(scratch), {}
        with tarfile.open(archive) as tar:
            tar.extractall(self.scratch, filter="data") if hasattr(tarfile, "data_filter") else \
                tar.extractall(self.scratch)
        self.index = json.loads((self.scratch / "index.json").read_text())

    def blob(self, name):
        return (self.scratch / "blobs" / name).read_bytes()

    def golden_tensors(self, policy):
        if policy not in self.golden:
            self.golden[policy] = read_safetensors(
                self.data / f"golden/tiny-checkpoint-lerobot-{policy}/checkpoint" / WEIGHTS)
        return self.golden[policy]

    def weights(self, policy, stored):
        """model.safetensors: the stored header, and values that the golden folder has too."""
        header = self.blob(stored["header"])
        _, offsets, data = self.golden_tensors(policy)
        own = self.blob(stored["own"]) if "own" in stored else b""
        tensors = {n: t["data_offsets"] for n, t in json.loads(header).items()
                   if n != "__metadata__"}
        out = bytearray(max(last for _, last in tensors.values()))
        for name, (first, last) in tensors.items():
            if name in stored.get("stored", {}):
                at = stored["stored"][name]
                out[first:last] = own[at:at + last - first]
            else:
                begin, end = offsets[stored.get("names", {}).get(name, name)]
                out[first:last] = data[begin:end]
        return struct.pack("<Q", len(header)) + header + bytes(out)

    def folder(self, release, name):
        """The checkpoint as the release saved it."""
        folder = self.scratch / release / name
        if not folder.exists():
            folder.mkdir(parents=True)
            cell = self.index["releases"][release][name]
            for file, blob in cell["files"].items():
                (folder / file).write_bytes(self.blob(blob))
            if "weights" in cell:
                content = self.weights(name.split("-")[0], cell["weights"])
                (folder / WEIGHTS).write_bytes(content)
        return folder


def distance(got, wanted):
    if len(got) != len(wanted) or any(len(a) != len(b) for a, b in zip(got, wanted)):
        return math.inf
    square = lambda rows: sum(v * v for row in rows for v in row)
    return math.sqrt(square([[a - b for a, b in zip(x, y)] for x, y in zip(got, wanted)])
                     / square(wanted))


def observation(cell, frames, tokenizer):
    """Options of `tendon run`: what a cell of lerobot_cells.py saw."""
    options = ["--prompt", cell["prompt"], "--state", ",".join(map(repr, cell["state"])),
               "--tokenizer", tokenizer]
    for camera, frame in cell["frames"].items():
        options += ["--image", f"{camera}={frames / frame}"]
    return options


def run(tendon, matrix, release, name):
    """(exit code, actions or None, standard error) of a cell."""
    cell = matrix.index["releases"][release][name]
    out = matrix.scratch / f"{release}-{name}.out.json"
    arguments = [tendon, "run", matrix.folder(release, name), "--precision", "f32",
                 "--noise", matrix.scratch / "noise.json", "--threads", 1, "--out", out,
                 *observation(cell, matrix.scratch / "frames",
                              matrix.data / "tokenizer/small_tokenizer.json"), *cell["arguments"]]
    if "weights" not in cell:  # an adapter alone
        arguments += ["--base", matrix.folder(release, name.split("-")[0] + "-default")]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=120)
    if done.returncode:
        return done.returncode, None, done.stderr
    told = json.loads(out.read_text())
    return 0, told["actions"] if isinstance(told, dict) else told, done.stderr


def verdict(tendon, matrix, release, name):
    """What is wrong with a cell; empty: nothing."""
    cell = matrix.index["releases"][release][name]
    code, actions, said = run(tendon, matrix, release, name)
    if "refused" in cell:
        lacking = [words for words in cell["refused"] if words not in said]
        return "" if code == 3 and not lacking else f"exit {code}, lacks {lacking}: {said[-300:]}"
    if code:
        return f"exit {code}: {said.strip()[-300:]}"
    far = distance(actions, matrix.index["actions"][cell["actions"]]) + cell.get("apart", 0)
    lacking = [words for words in cell.get("said", []) if words not in said]
    if lacking:
        return f"does not say {lacking}: {said[-300:]}"
    return "" if far <= TOLERANCE else f"{far:.2e} from lerobot's actions, at most {TOLERANCE}"


def main(tendon, data):
    scratch = tempfile.mkdtemp()
    try:
        matrix = Matrix(data / "lerobot/matrix.tar.xz", data, scratch)
        cells = [(release, name) for release, row in matrix.index["releases"].items()
                 for name, cell in row.items() if "files" in cell]
        for release, name in cells:  # before threads make them at the same time
            matrix.folder(release, name)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda cell: verdict(tendon, matrix, *cell), cells)
            wrong = [f"{release} {name}: {text}" for (release, name), text in zip(cells, found)
                     if text]
        print("\n".join(wrong))
        counts = {release: sum("files" in cell for cell in row.values())
                  for release, row in matrix.index["releases"].items()}
        print(f"{len(cells)} cells: {counts}; {len(wrong)} wrong")
        least = 20  # of each release that was run; a matrix that lost its cells proves nothing
        short = [release for release, n in counts.items()
                 if n < (1 if release.startswith("0.3") else least)]
        if wrong or short or len(counts) < 8:
            sys.exit(f"wrong, or too few cells: {short}")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
