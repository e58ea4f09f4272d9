#!/usr/bin/env python3
"""lerobot_matrix_test.py TENDON: tiny checkpoints of each release of lerobot act as there.

data/lerobot/matrix.tar.xz is what tools/lerobot_matrix.py stored: per release and cell the files
that save_pretrained wrote and lerobot's own actions. A cell is run in float32 and must be within
1e-5 (relative L2) of the release that saved it, or be refused with the words that are stored.
"""
import concurrent.futures
import json
import math
import os
import pathlib
import sys
import tarfile
import tempfile

from environment import DATA, TOKENIZER, Checks, read_safetensors, safetensors, tendon

TOLERANCE = 1e-5
WEIGHTS = "model.safetensors"


class Matrix:
    """The archive, unpacked into `scratch`; weights come from the golden folders."""

    def __init__(self, archive, scratch):
        self.scratch, self.golden = pathlib.Path(scratch), {}
        with tarfile.open(archive) as tar:
            tar.extractall(self.scratch, filter="data") if hasattr(tarfile, "data_filter") else \
                tar.extractall(self.scratch)
        self.index = json.loads((self.scratch / "index.json").read_text())

    def blob(self, name):
        return (self.scratch / "blobs" / name).read_bytes()

    def golden_tensors(self, policy):
        """{name: bytes}"""
        if policy not in self.golden:
            file = DATA / f"golden/tiny-checkpoint-lerobot-{policy}/checkpoint" / WEIGHTS
            self.golden[policy] = {name: content for name, (_, content)
                                   in read_safetensors(file)[1].items()}
        return self.golden[policy]

    def weights(self, policy, stored):
        """model.safetensors: the stored header, and values that the golden folder has too."""
        header, golden = self.blob(stored["header"]), self.golden_tensors(policy)
        own = self.blob(stored["own"]) if "own" in stored else b""
        tensors = {n: t["data_offsets"] for n, t in json.loads(header).items()
                   if n != "__metadata__"}
        out = bytearray(max(last for _, last in tensors.values()))
        for name, (first, last) in tensors.items():
            if name in stored.get("stored", {}):
                at = stored["stored"][name]
                out[first:last] = own[at:at + last - first]
            else:
                out[first:last] = golden[stored.get("names", {}).get(name, name)]
        return safetensors(header, bytes(out))

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


def observation(cell, frames):
    """Options of `tendon run`: what a cell of lerobot_cells.py saw."""
    options = ["--prompt", cell["prompt"], "--state", ",".join(map(repr, cell["state"])),
               *TOKENIZER]
    for camera, frame in cell["frames"].items():
        options += ["--image", f"{camera}={frames / frame}"]
    return options


def run(matrix, release, name):
    """(exit code, actions or None, standard error) of a cell."""
    cell = matrix.index["releases"][release][name]
    out = matrix.scratch / f"{release}-{name}.out.json"
    arguments = ["run", matrix.folder(release, name), "--precision", "f32",
                 "--noise", matrix.scratch / "noise.json", "--threads", 1, "--out", out,
                 *observation(cell, matrix.scratch / "frames"), *cell["arguments"]]
    if "weights" not in cell:  # an adapter alone
        arguments += ["--base", matrix.folder(release, name.split("-")[0] + "-default")]
    done = tendon(*arguments)
    if done.returncode:
        return done.returncode, None, done.stderr
    told = json.loads(out.read_text())
    return 0, told["actions"] if isinstance(told, dict) else told, done.stderr


def verdict(matrix, release, name):
    """What is wrong with a cell; empty: nothing."""
    cell = matrix.index["releases"][release][name]
    code, actions, said = run(matrix, release, name)
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


def main():
    check = Checks()
    with tempfile.TemporaryDirectory() as scratch:
        matrix = Matrix(DATA / "lerobot/matrix.tar.xz", scratch)
        cells = {release: [name for name, cell in row.items() if "files" in cell]
                 for release, row in matrix.index["releases"].items()}
        asked = [(release, name) for release, names in cells.items() for name in names]
        for release, name in asked:  # before threads make them at the same time
            matrix.folder(release, name)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda cell: verdict(matrix, *cell), asked)
            for (release, name), text in zip(asked, found):
                check(not text, f"{release} {name}: {text}")
    for release, names in cells.items():  # a matrix that lost its cells proves nothing
        check(len(names) >= (1 if release.startswith("0.3") else 20),
              f"{release} has {len(names)} cells")
    check(len(cells) >= 8, f"releases: {[*cells]}")
    print({release: len(names) for release, names in cells.items()})
    return check.end()


if __name__ == "__main__":
    sys.exit(main())
