"""python compare.py A.safetensors B.safetensors: greatest relative L2 between their tensors."""

import sys

import numpy as np
from safetensors.numpy import load_file

a, b = (load_file(p) for p in sys.argv[1:3])
worst = {
    k: float(
        np.linalg.norm(a[k].astype(np.float64) - b[k])
        / max(np.linalg.norm(b[k].astype(np.float64)), 1e-30)
    )
    for k in a.keys() & b.keys()
}
name = max(worst, key=worst.get)
print(f"{len(worst)} tensors, worst {name} {worst[name]:.2e}")
print("only in the first:", *sorted(a.keys() - b.keys()))
print("only in the second:", *sorted(b.keys() - a.keys()))
