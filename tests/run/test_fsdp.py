"""FSDP's shards on CPUs: the losses, the bound and the samples of one process."""

import json
import sys

import pytest

from tests.run.accidents import column
from tests.run.commands import command, end
from tests.run.hooks import hook

LOSS = "train/loss"
RAW = ["callbacks.ema=null", "weights=raw", "trainer.max_steps=20", "trainer.val_check_interval=10"]
# Lightning refuses FSDP on a CPU by the strategy's name and class, but not a subclass; torch does
# not look for a CPU itself.
ON_CPUS = """
import torch
from pytorch_lightning.strategies import FSDPStrategy, fsdp
from torch.distributed.fsdp import (
    FullOptimStateDictConfig, FullStateDictConfig, FullyShardedDataParallel, StateDictType
)
from triptych.run import trainer

def whole_weights(module, world_size, rank0_only=True):
    kept = {"offload_to_cpu": False, "rank0_only": False}
    return FullyShardedDataParallel.state_dict_type(
        module, StateDictType.FULL_STATE_DICT, FullStateDictConfig(**kept),
        FullOptimStateDictConfig(**kept)
    )

# A copy to the CPU is none there, and its memory is freed with the shard's.
fsdp._get_full_state_dict_context = whole_weights

class OnCpus(FSDPStrategy):
    def _setup_model(self, model):
        sizes = {"sharding_strategy": self.sharding_strategy, **self.kwargs}
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **sizes)

by_name = trainer._strategy

def strategy(node, *others):
    return OnCpus() if node["strategy"] == "fsdp" else by_name(node, *others)

trainer._strategy = strategy
"""
# Lightning's autocast is a GPU's, and both processes end in the 15th step.
MIXED_ON_CPUS = """
from triptych.run.trainer import ShardedPrecision

ShardedPrecision.forward_context = lambda self: torch.autocast("cpu", torch.bfloat16)
"""
KILLED = """
import os
from triptych.models.diffusion import Diffusion

loss = Diffusion.loss

def killed(self, batch, step, rank, world):
    if step == 14:
        os._exit(9)
    return loss(self, batch, step, rank, world)

Diffusion.loss = killed
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_fsdp_on_several_processes_matches_one(root, processes):
    sharded = ["trainer=fsdp", "trainer.accelerator=cpu", f"trainer.devices={processes}"]
    end(command("name=one", *RAW), root)
    end(command("name=many", *sharded, *RAW), root, **hook(root, ON_CPUS))
    folders = [root / "logs" / "runs" / name for name in ("one", "many")]
    one, many = (column(folder, LOSS) for folder in folders)
    worst = max(abs(a - b) / abs(a) for a, b in zip(one, many, strict=True))
    print(f"{processes} processes: {worst:.1e}", file=sys.stderr)
    assert len(one) == 20 and worst < 1e-4
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    assert second["world_size"] == processes
    assert second["test"]["bpd"]["n"] == first["test"]["bpd"]["n"]
    assert second["test"]["bpd"]["mean"] == pytest.approx(first["test"]["bpd"]["mean"], rel=1e-3)


@pytest.mark.slow
def test_fsdp_in_bf16_trains_resumes_and_evaluates_as_one_process(root):
    unet = ["denoiser=unet", "denoiser.network.widths=[8,8]", "denoiser.network.heads=2"]
    alone = command("name=one", "trainer.precision=bf16-mixed", *unet, *RAW)
    alone.remove("denoiser.network.width=8")
    two_processes = ["name=many", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    sharded = [*alone, *two_processes]
    sharded.remove("name=one")
    end(alone, root)
    mixed = ON_CPUS + MIXED_ON_CPUS
    end(sharded, root, code=None, **hook(root, mixed + KILLED))
    many = root / "logs" / "runs" / "many"
    assert not (many / "summary.json").exists()
    done = end(sharded, root, **hook(root, mixed))
    assert "resumed at step 10" in done.stderr
    first, second = (column(many.parent / name, LOSS) for name in ("one", "many"))
    worst = max(abs(a - b) / abs(a) for a, b in zip(first, second, strict=True))
    one, two = (
        json.loads((many.parent / name / "summary.json").read_text())["test"]["bpd"]["mean"]
        for name in ("one", "many")
    )
    print(f"loss {worst:.1e}, bound {one} and {two}", file=sys.stderr)
    assert len(first) == 20 and worst < 0.02
    assert two == pytest.approx(one, rel=1e-3)
