"""layouts_orbax.py SOURCE LAYOUT SIZE FOLDER: a JAX checkpoint with random weights in float32; run
by layouts_test.py in the environment of tools/convert_orbax."""
import math
import pathlib
import sys

import numpy as np
import tensorstore as ts

sys.path.insert(0, str(pathlib.Path(sys.argv[1]) / "tools/convert_orbax"))
from layout import model_rows, size  # noqa: E402

# What the letters of layout.py stand for; tiny: those of lerobot_cells.py.
SIZES = {
    "full": dict(b=27, w=1152, r=16, a=72, u=4304, t=256, y=14, x=14, d=2048, v=257152, l=18, n=8,
                 k=1, h=256, m=16384, e=1024, f=4096, i=32, s=32),
    "tiny": dict(b=3, w=48, r=2, a=24, u=80, t=16, y=14, x=14, d=64, v=512, l=3, n=4, k=1, h=16,
                 m=128, e=32, f=64, i=32, s=32),
}


def main(name, which, folder):
    sizes = SIZES[which]
    block = np.random.default_rng(1).standard_normal(1048583, np.float32)  # see lerobot_block.py
    for row in model_rows(name.startswith("pi05")):
        inputs = math.prod(size(axis, sizes) for axis in row.order.split()[1:])
        spread = np.float32(inputs ** -0.5 if inputs > 1 else 0.02)
        values = np.resize(spread * block, [size(axis, sizes) for axis in row.axes.split()])
        if "/img/" in row.path and row.path.endswith("/scale"):
            values.fill(1)
        block = np.roll(block, 1009)
        place = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/params/"},
                 "path": f"params.{row.path.replace('/', '.')}/"}
        # As orbax stores an array of one device: one chunk, zstd.
        spec = {"driver": "zarr", "kvstore": place,
                "metadata": {"compressor": {"id": "zstd", "level": 1}, "chunks": values.shape}}
        ts.open(spec, create=True, dtype=ts.float32,
                shape=values.shape).result().write(values).result()


if __name__ == "__main__":
    main(*sys.argv[2:5])
