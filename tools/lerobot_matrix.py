#!/usr/bin/env python3
"""Tiny checkpoints of each release of lerobot, as goldens: tests/data/lerobot/matrix.tar.xz.

    tools/lerobot_matrix.py --shared ENV --openpi FOLDER [RELEASE ...]

For each RELEASE (default: all of the table below) an environment is made in build/lerobot-matrix,
and in it make_goldens/lerobot_cells.py saves the cells. Their rows replace those of the archive,
whose other rows stay, and what differs from the release before is printed: settings, tensors,
actions. A new release of lerobot is one more line of the table. Cells that a release cannot make
(no relative actions, no PEFT) are stored with the reason.

ENV is an environment with torch, torchvision, numpy, safetensors, peft, accelerate and the other
plain dependencies of lerobot (make_goldens/requirements.txt, peft): PyTorch is 2 GB and the same
for all. lerobot and what must have another version come on top, without dependencies: its robots,
data sets and trackers are not needed, except for what it imports in any case. Every release ran
with torch 2.11 and Python 3.12, newer than 0.3 and 0.4 ask for. Theirs needs patched files of
transformers, which openpi publishes: FOLDER is src/openpi/models_pytorch/transformers_replace of
openpi's repository.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from environment import read_safetensors
from lerobot_matrix_test import WEIGHTS, Matrix, distance

ARCHIVE = ROOT / "tests/data/lerobot/matrix.tar.xz"
IMPORTED = ["datasets>=4.1,<5", "pyarrow", "dill", "multiprocess", "xxhash", "pandas", "pytz",
            "python-dateutil", "tzdata", "six", "av==15.1.0", "jsonlines", "attrs", "imageio",
            "deepdiff>=7.0.1,<9", "orderly-set", "diffusers==0.35.2", "importlib_metadata", "zipp",
            "pyserial", "draccus==0.10.0", "pyyaml-include==1.4.1"]
OLD = ["transformers==4.53.2", "tokenizers==0.21.4", "huggingface_hub==0.35.3",
       "fsspec==2025.9.0", "pytest", "pluggy", "iniconfig", "datasets==4.1.1", *IMPORTED[1:]]
RELEASES = {
    "0.3.2": OLD, "0.3.3": OLD,
    "0.4.0": OLD, "0.4.1": OLD, "0.4.2": OLD, "0.4.3": OLD, "0.4.4": OLD,
    "0.5.0": ["transformers==5.3.0", *IMPORTED], "0.5.1": ["transformers==5.3.0", *IMPORTED],
    "0.6.0": ["transformers==5.5.4", "draccus==0.10.0", "pyyaml-include==1.4.1"],
    "0.6.1": ["transformers==5.5.4", "draccus==0.11.6"],
}
# What cannot be seen of an adapter alone: which release trained it (0.4.0 and 0.4.1 had none).
ADAPTERS_OF_0_4 = ["--pad-state", "--dark-bars"]
REFUSED = {"0.3": ["lerobot.processor.migrate_policy_normalization"]}
ACTIONS_SAME = 1e-6  # of two releases: stored once, the distance counts against the tolerance


def environment(release, work, shared, openpi):
    """The interpreter of an environment with this release."""
    folder = work / f"env-{release}"
    python = folder / "bin/python"
    if list(folder.glob("lib/python*/site-packages/zz_shared.pth")):  # written last
        return python
    shutil.rmtree(folder, ignore_errors=True)
    run = lambda *command: subprocess.run(list(map(str, command)), check=True)
    run(shared / "bin/python", "-m", "venv", "--without-pip", folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    run(shared / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "--target", packages,
        f"lerobot=={release}", *RELEASES[release])
    if "transformers==4.53.2" in RELEASES[release]:
        if not openpi:
            sys.exit(f"lerobot {release} needs patched files of transformers: give --openpi")
        shutil.copytree(openpi, packages / "transformers", dirs_exist_ok=True)
    (site,) = shared.glob("lib/python*/site-packages")
    (packages / "zz_shared.pth").write_text(f"{site}\n")  # after its own packages
    return python


def save_cells(release, work, shared, openpi):
    out = work / f"cells-{release}"
    if not (out / "cells.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        python = environment(release, work, shared, openpi)
        # PEFT looks for its base on the hub, and writes modules in the order of a set.
        subprocess.run(["env", "HF_HUB_OFFLINE=1", "PYTHONHASHSEED=0", python, "-B",
                        ROOT / "tools/make_goldens/lerobot_cells.py", out], check=True)
    return out


class Pack:
    """What the archive will hold; equal contents are stored once."""

    def __init__(self, folder, matrix):
        self.folder, self.matrix = folder, matrix
        (folder / "blobs").mkdir(parents=True)
        (folder / "frames").mkdir()
        self.known, self.index = {}, {"releases": {}, "actions": []}

    def blob(self, content):
        if content not in self.known:
            self.known[content] = f"{len(self.known):03}"
            (self.folder / "blobs" / self.known[content]).write_bytes(content)
        return self.known[content]

    def actions(self, rows):
        """The index of these actions, or of such that are nearly the same, and how far off."""
        rows = [[float(f"{v:.8g}") for v in row] for row in rows]
        for i, known in enumerate(self.index["actions"]):
            if (far := distance(rows, known)) <= ACTIONS_SAME:
                return {"actions": i, "apart": float(f"{far:.2g}")}
        self.index["actions"].append(rows)
        return {"actions": len(self.index["actions"]) - 1}

    def weights(self, policy, path):
        header, tensors = read_safetensors(path)
        golden = self.matrix.golden_tensors(policy)
        by_bytes = {content: name for name, content in sorted(golden.items())}
        stored, names, own = {}, {}, b""
        for name, (_, content) in tensors.items():
            if golden.get(name) == content:
                continue
            if content in by_bytes:
                names[name] = by_bytes[content]
            else:
                stored[name], own = len(own), own + content
        told = {"header": self.blob(header)}
        if names:
            told["names"] = names
        if stored:
            told |= {"stored": stored, "own": self.blob(own)}
        return told

    def row(self, release, out):
        told = json.loads((out / "cells.json").read_text())
        self.index["releases"][release] = {
            name: self.cell(release, name, out) if text == "saved" else {"absent": text}
            for name, text in told.items()}
        for seen in (*(out / "frames").glob("*"), *out.glob("noise.json")):
            shutil.copy(seen, self.folder / seen.relative_to(out))

    def cell(self, release, name, out):
        folder = out / name
        cell = json.loads((folder / "cell.json").read_text())
        actions, series = cell.pop("actions"), release.rpartition(".")[0]
        alone = not (folder / WEIGHTS).exists()
        cell["arguments"] = ADAPTERS_OF_0_4 if alone and series == "0.4" else []
        cell["files"] = {file.name: self.blob(file.read_bytes())
                         for file in sorted(folder.iterdir())
                         if file.name not in ("cell.json", WEIGHTS)}
        if not alone:
            cell["weights"] = self.weights(name.split("-")[0], folder / WEIGHTS)
        return cell | ({"refused": REFUSED[series]} if series in REFUSED else
                       self.actions(actions))


def unpacked(matrix, release):
    """A row of the archive as save_cells() makes it."""
    out = matrix.scratch / f"cells-{release}"
    (out / "frames").mkdir(parents=True)
    told = {}
    for name, cell in matrix.index["releases"][release].items():
        told[name] = cell.get("absent", "saved")
        if "files" in cell:
            shutil.copytree(matrix.folder(release, name), out / name)
            rows = matrix.index["actions"][cell["actions"]] if "actions" in cell else []
            (out / name / "cell.json").write_text(json.dumps(
                {k: cell[k] for k in ("state", "prompt", "frames")} | {"actions": rows}))
    (out / "cells.json").write_text(json.dumps(told))
    for frame in (matrix.scratch / "frames").glob("*"):
        shutil.copy(frame, out / "frames")
    shutil.copy(matrix.scratch / "noise.json", out)
    return out


def flat(value, at=""):
    if isinstance(value, (dict, list)) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in pairs for k, v in flat(inner, f"{at}/{key}").items()}
    return {at: value}


def differences(before, after):
    """What two folders of one cell have that the other has not, a line each."""
    names = {f.name for f in before.iterdir()} | {f.name for f in after.iterdir()}
    for file in sorted(names - {"cell.json", "tendon.json"}):
        a, b = before / file, after / file
        if not (a.exists() and b.exists()):
            yield f"{file}: {'new' if b.exists() else 'gone'}"
        elif file.endswith(".json"):
            x, y = (flat(json.loads(f.read_text())) for f in (a, b))
            changed = sorted(k for k in x.keys() | y.keys() if x.get(k, ...) != y.get(k, ...))
            for key in changed[:40]:
                yield f"{file}: {key}: {x.get(key, '-')!r} -> {y.get(key, '-')!r}"
        elif a.read_bytes() != b.read_bytes():
            x, y = (json.loads(read_safetensors(f)[0]) for f in (a, b))
            new, gone = sorted(y.keys() - x.keys()), sorted(x.keys() - y.keys())
            yield f"{file}: {len(new)} new tensors {new[:3]}, {len(gone)} gone {gone[:3]}"
    rows = [json.loads((f / "cell.json").read_text())["actions"] for f in (before, after)]
    if all(rows) and (far := distance(rows[1], rows[0])) > ACTIONS_SAME:
        yield f"actions: {far:.1e} apart"


def report(last, release, outs):
    print(f"== {release} against {last}")
    before, after = (json.loads((outs[r] / "cells.json").read_text()) for r in (last, release))
    seen = {}
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name, "no such cell"), after.get(name, "no such cell")
        lines = [f"{a} -> {b}"] if a != b else []
        if a == b == "saved":
            lines = differences(outs[last] / name, outs[release] / name)
        for line in lines:
            seen.setdefault(line, []).append(name)
    for line, names in seen.items():
        print(f"{line}   [{len(names)} cells: {', '.join(names[:3])}]")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", metavar="RELEASE", default=list(RELEASES))
    parser.add_argument("--shared", type=pathlib.Path, required=True, metavar="ENV")
    parser.add_argument("--openpi", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/lerobot-matrix")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        (scratch / "old").mkdir()
        empty = scratch / "empty.tar.xz"
        (scratch / "index.json").write_text('{"releases": {}}')
        with tarfile.open(empty, "w:xz") as tar:
            tar.add(scratch / "index.json", "index.json")
        matrix = Matrix(ARCHIVE if ARCHIVE.exists() else empty, scratch / "old")
        outs = {r: unpacked(matrix, r) for r in matrix.index["releases"]
                if r not in options.releases}
        for release in options.releases:
            outs[release] = save_cells(release, options.work.resolve(), options.shared.resolve(),
                                       options.openpi)
        ordered = sorted(outs, key=lambda r: [int(n) for n in r.split(".")])
        pack = Pack(scratch / "new", matrix)
        for release in ordered:
            pack.row(release, outs[release])
        (pack.folder / "index.json").write_text(json.dumps(pack.index, indent=0) + "\n")
        ARCHIVE.parent.mkdir(exist_ok=True)
        plain = lambda info: info.replace(mtime=0, uid=0, gid=0, uname="", gname="", deep=False)
        with tarfile.open(ARCHIVE, "w:xz", preset=9) as tar:
            tar.add(pack.folder, ".", filter=plain)
        for last, release in zip(ordered, ordered[1:]):
            if release in options.releases:
                report(last, release, outs)
        print(f"{ARCHIVE}: {ARCHIVE.stat().st_size} bytes, {len(pack.known)} different contents")


if __name__ == "__main__":
    main()
