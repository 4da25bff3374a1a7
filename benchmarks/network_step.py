"""Measure parameters, memory and time per optimiser step of the published networks on this CPU.

    python benchmarks/network_step.py [--batch 4] [NAME ...]

Each of ``configs/denoiser/NAME.yaml`` runs in a separate process, in single precision, on random
data of the paper's shape: two steps of AdamW, of which the second is timed. Memory is the peak of
the process, less its peak before the network was made.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from triptych.config.build import build
from triptych.diffusion.condition import Condition, Labels

CONFIGS = Path(__file__).parent.parent / "configs" / "denoiser"
NAMES = {  # shape, outputs per dimension, classes
    "unet_ddpm": ((3, 32, 32), 1, 0),
    "unet_iddpm": ((3, 32, 32), 2, 0),
    "unet_edm": ((3, 32, 32), 1, 0),
    "unet_vdm": ((3, 32, 32), 1, 0),
    "unet_edm2": ((3, 64, 64), 1, 1000),
    "dit_b": ((4, 32, 32), 2, 1000),
    "jit_b": ((3, 256, 256), 1, 1000),
}


def peak() -> float:
    """Return the peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, batch: int) -> str:
    shape, outputs, classes = NAMES[name]
    before = peak()
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["network"]
    conditions = {"label": Labels(classes)} if classes else {}
    given = {"shape": shape, "outputs": outputs, "conditions": conditions, "spacing": 2 / 255}
    network = build(node, "denoiser.network", **given)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    z, gamma = torch.randn(batch, *shape), torch.zeros(batch)
    label = Condition(label=torch.zeros(batch, dtype=torch.long)) if classes else None
    for _ in range(2):
        start = time.process_time()
        network(z, gamma, label).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - start
    count = sum(p.numel() for p in network.parameters()) / 1e6
    event, more = "x".join(map(str, shape)), peak() - before
    return f"| `{name}` | {event} | {count:.1f} M | {more:.1f} GiB | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    options = parser.parse_args()
    if len(options.names) == 1:
        torch.set_num_threads(1)
        print(measure(options.names[0], options.batch))
        return
    print(
        "| `denoiser=` | event | parameters | memory | CPU seconds |\n|---|---|---|---|---|",
        flush=True,
    )
    for name in options.names:
        subprocess.run([sys.executable, __file__, "--batch", str(options.batch), name], check=True)


if __name__ == "__main__":
    main()
