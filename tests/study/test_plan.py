"""``plan=true``: parameters, operations and memory as in a real step, but no run starts."""

import copy
import functools
import re
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from triptych.config.compose import compose_command
from triptych.diffusion.condition import Condition
from triptych.errors import UserError
from triptych.run.build import build_experiment
from triptych.run.request import resolve
from triptych.study.plan import (
    _cost,
    count_averages,
    count_evaluations,
    describe_cost,
    memory_problem,
    network_cost,
)


@functools.cache
def resolved(*overrides: str) -> dict:
    return resolve(compose_command("train", list(overrides)), Path()).config


FSDP = ["trainer=fsdp", "callbacks.ema=null", "weights=raw"]
NETWORKS = [
    ["denoiser=resnet"],
    ["denoiser=dit", "model.conditional=true"],
    ["denoiser=unet", "denoiser.network.widths=[16,32]", "denoiser.network.blocks=1"],
]


@pytest.mark.parametrize("overrides", NETWORKS, ids=["resnet", "dit", "unet"])
def test_network_cost_matches_real_step(overrides):
    config = resolved(*overrides)
    model = build_experiment(config, download=False).model
    batch = 3
    condition = None
    if config["model"]["conditional"]:
        condition = Condition.of(label=torch.zeros(batch, dtype=torch.int64))
    network = model.denoiser.network
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    item = torch.zeros(batch, 1, 8, 8), torch.zeros(batch), condition
    with sdpa_kernel(
        SDPBackend.MATH
    ):  # torch's counter cannot take apart the backward pass of the CPU's own
        with FlopCounterMode(display=False) as counter:
            network(*item).sum().backward()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(*item)
    cost = network_cost(config)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert cost.operations * batch == pytest.approx(counter.get_total_flops(), rel=0.05)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)
    assert cost.activations * batch == pytest.approx(saved, rel=0.15)


OWN = """
import torch
from torch import nn

class Flat(nn.Module):
    def __init__(self, shape, outputs=1, conditions=None):
        super().__init__()
        self.shape, self.conditions = shape, {}
        self.size = int(torch.tensor(shape).prod())
        self.last = nn.Linear(self.size, self.size)

    def forward(self, z, gamma, condition=None):
        assert gamma.item() <= 0
        return self.last(z.flatten(1)).view(-1, *self.shape)
"""


def test_network_cost_supports_user_network_that_reads_values(trusting):
    trusting("own_flat", OWN)
    config = copy.deepcopy(resolved())
    config["denoiser"]["network"] = {"_target_": "own_flat.Flat"}
    cost = network_cost(config)
    assert (cost.parameters, cost.forward) == (64 * 65, 2 * 64 * 64)
    assert cost.operations == 3 * cost.forward and cost.activations > 0


EVALUATED = 10 * 150 * 4 + (150 + 297) * 16 + 250 * 64  # passes of a run
A100 = {"float32": 19.5e12, "TF32": 156e12, "16 bits": 312e12}


@pytest.mark.parametrize(
    "typed, precision",
    [
        ([], "float32"),
        (["trainer.tf32=true"], "TF32"),
        (["trainer.precision=bf16-mixed"], "16 bits"),
        (["trainer.precision=16-mixed", "trainer.tf32=true"], "16 bits"),
    ],
)
def test_plan_hours_follow_from_flop_and_precision(typed, precision):
    """Training has the precision of the command; validation, bounds and samples have float32."""
    steps = ["trainer.max_steps=1000", "trainer.val_check_interval=100", "sampler.steps=250"]
    config = resolved(*steps, *typed)
    cost = network_cost(config)
    lines = describe_cost([("a", 3, 3, config), ("b", 2, 1, config)])
    assert lines[0] == "5 runs, not started" and len(lines) == 8, "one line for one network"
    training = 4 * 1000 * 64 * cost.operations
    evaluation = 5 * EVALUATED * cost.forward
    amounts = {precision: training}
    amounts["float32"] = amounts.get("float32", 0) + evaluation
    counted = ", ".join(f"{flop:.3g} FLOP in {name}" for name, flop in amounts.items())
    assert lines[2] == f"4 fits, validation, bounds and samples: {counted}"
    seconds = (training / A100[precision] + evaluation / A100["float32"]) / 0.35
    assert lines[3].startswith(f"{seconds / 3600:.3g} hours on one A100, ")


def test_plan_counts_blocks_twice_under_gradient_checkpointing():
    config = resolved("denoiser=unet", "denoiser.network.checkpointing=true")
    plain = network_cost(resolved("denoiser=unet"))
    cost = network_cost(config)
    assert cost.forward == plain.forward and cost.activations < plain.activations
    assert cost.operations == 4 * plain.forward


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_plan_counts_the_memory_of_a_block_that_is_computed_again(device):
    """A transformer's blocks are equal, so a seventh one shows the memory of a block."""

    def activations(depth, checkpointing):
        typed = (
            f"denoiser.network.depth={depth}",
            f"denoiser.network.checkpointing={checkpointing}",
        )
        return _cost(resolved("data=cifar10", "denoiser=dit", *typed), device).activations

    block = activations(7, "false") - activations(6, "false")
    inputs = activations(7, "true") - activations(6, "true")
    outside = activations(6, "false") - 6 * block
    assert inputs < block / 10
    assert activations(6, "true") == pytest.approx(6 * inputs + block + outside, rel=1e-3)


def test_plan_counts_each_call_of_sampler_and_guidance():
    plain = resolved("samples.n=10", "sampler.steps=20")
    heun = resolved("samples.n=10", "sampler=heun", "sampler.steps=20")
    guided = resolved(
        "samples.n=10", "sampler.steps=20", "guidance=classifier_free", "model.conditional=true"
    )
    measured = resolved(
        *("samples.n=10", "sampler.steps=20", "measures.n=100", "measures.repeats=2"),
        "measures.classifier=x.ckpt",
    )
    most = [count_evaluations(config) for config in (plain, heun, guided, measured)]
    assert [n - most[0] for n in most] == [0, 200, 200, 20 * 200]


LARGE = ["data=cifar10", "denoiser=unet", "denoiser.network.widths=[256,512,512]"]


def problem(*typed: str) -> str:
    config = resolved(*LARGE, *typed)
    return memory_problem(config, network_cost(config))


def test_plan_refuses_hours_for_what_no_card_holds_and_says_what_fits():
    lines = describe_cost([("a", 1, 1, resolved(*LARGE, "data.batch_size=4096"))])
    assert not any("hours on one" in line for line in lines)
    devices, typed = re.search(r"trainer=ddp on (\d+) devices fits, or (.*)$", lines[1]).groups()
    parts = int(devices)
    assert "too large for the 80 GiB of an A100 or H100, so no hours" in lines[1]
    assert typed == f"trainer.accumulate_grad_batches={parts} data.batch_size={4096 // parts}"
    assert not problem(*typed.split())
    assert not problem("data.batch_size=4096", "trainer=ddp", f"trainer.devices={parts}")
    assert problem("data.batch_size=4096", "trainer=ddp", f"trainer.devices={parts // 2}")


def test_plan_keeps_the_items_of_a_step_and_the_shards():
    """180 GiB and a quarter need 3 parts on one device, 384 GiB on each of two 7 or more: 8 divide 64."""
    config = resolved(*LARGE, "data.batch_size=15")
    cost = network_cost(config)._replace(activations=12 * 2**30)
    assert "accumulate_grad_batches=3 data.batch_size=5" in memory_problem(config, cost)
    large = cost._replace(activations=100 * 2**30)
    assert "even one item per device does not fit" in memory_problem(config, large)
    config = resolved(*LARGE, *FSDP, "trainer.devices=2", "data.batch_size=64")
    assert "trainer=fsdp on 16 devices fits" in memory_problem(config, cost)


def test_plan_refuses_hours_for_weights_that_no_card_holds():
    config = resolved(*LARGE)
    cost = network_cost(config)._replace(parameters=10_000_000_000)
    assert "trainer=fsdp callbacks.ema=null weights=raw" in memory_problem(config, cost)
    config = resolved(*LARGE, *FSDP, "trainer.devices=8")
    assert not memory_problem(config, cost)


@pytest.mark.parametrize(
    "typed, devices, shards",
    [
        (["trainer=ddp", "trainer.devices=4"], 4, 1),
        ([*FSDP, "trainer.devices=[0,1]", "trainer.num_nodes=4"], 8, 8),
    ],
)
def test_plan_memory_accounts_for_devices_and_fsdp(typed, devices, shards):
    config = resolved("trainer.max_steps=1000", "data.batch_size=64", *typed)
    cost = network_cost(config)
    states = 4 * cost.parameters * (4 + count_averages(config))
    memory = states / shards + 64 / devices * cost.activations
    line = describe_cost([("a", 1, 1, config)])[1]
    assert f"activations {memory / 2**30:.3g} GiB" in line and "devices" in line


def test_large_numbers_are_written_in_full():
    """1.07e+03 next to 12 is easily misread."""
    lines = describe_cost(
        [("a", 9, 9, resolved("trainer.max_steps=100_000_000_000", "data.batch_size=64"))]
    )
    assert "; 100,000,000,000 batches of 64 items, 6,400,000 million items; " in lines[1]
    hours = r"\d+,\d\d0 hours on one A100, \d+,\d\d0 hours on one H100 at 35% of the peak"
    assert re.fullmatch(hours, lines[3])


def test_plan_refuses_averages_of_sharded_weights():
    with pytest.raises(UserError, match="averages of sharded weights are not supported"):
        resolved("trainer=fsdp")


def test_plan_prints_assumed_numbers_of_classes_and_items(root):
    labelled = resolved("data=folder", "data.root=images", "denoiser=dit", "model.conditional=true")
    assumed = [
        line
        for line in describe_cost([("a", 1, 1, labelled), ("b", 1, 1, labelled)])
        if "assumed" in line
    ]
    assert assumed == [
        "assumed: 1,000 classes, as data=folder is not read",
        "assumed: 5,000 validation and test items each, as the data are not read",
    ]
    assert not any("assumed" in line for line in describe_cost([("a", 1, 1, resolved())]))


def test_plan_counts_parameters_of_learned_variance():
    fixed, learned = resolved(), resolved("bound.variance=learned", "bound.steps=100")
    lines = describe_cost([("fixed", 1, 1, fixed), ("learned", 1, 1, learned)])
    more = network_cost(learned).parameters - network_cost(fixed).parameters
    assert more > 0 and sum("parameters" in line for line in lines) == 2


UNTIL = "-m until=decided seed=1,2 max_seeds=5 sampler=ddim,heun"


def test_plan_starts_nothing_and_prints_no_errors(root, door):
    before, plans = {*root.rglob("*")}, []
    for typed in ("name=mine", "-m paper=vdm_bits scale=paper", UNTIL):
        done = door("triptych.cli.train", "plan=true", *typed.split())
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "not started" in done.stdout and "hours on one A100" in done.stdout
        plans.append(done.stdout)
    counted = (
        "until=decided: this plan counts only the first seeds; more may follow, up to 5 per setting"
    )
    assert [counted in one for one in plans] == [False, False, True]
    assert {*root.rglob("*")} == before


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["model=vae", "denoiser=none", "schedule=none", "objective=none"],
            "supports only model=diffusion",
        ),
        (
            ["model=oracle", "data=ring", "denoiser=mlp"],
            "supports only model=diffusion with a network to train",
        ),
        (
            ["data=digits_captioned", "model.conditional=true"],
            "without conditions, or conditioned on labels alone",
        ),
        (["+trainer.max_epochs=3"], "trainer.max_epochs=3 depends on the data"),
    ],
)
def test_plan_refuses_models_it_cannot_count(overrides, message):
    with pytest.raises(UserError, match=f"plan=true: .*{message}"):
        network_cost(resolved(*overrides))
