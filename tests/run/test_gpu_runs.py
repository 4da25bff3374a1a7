"""Runs on a card: objectives, options, two cards, samples, utilisation.

No test here has been run on a GPU yet. Each takes the accelerator as a parameter; on the CPU, where
the slow tests run it, it shows that the test itself is right.
"""

import json
import time

import pytest
import torch

from tests.run.accidents import column, stop_after
from tests.run.commands import command, end
from triptych.config.build import build
from triptych.config.compose import compose_command, unresolved_config
from triptych.diffusion.pieces import GPU_MEMORY, PROBE, Pieces
from triptych.diffusion.sampler import DDIM
from triptych.run.execute import execute
from triptych.run.reopen import reopen
from triptych.study.plan import CORE, PEAKS, UTILISATION

LOSS = "train/loss"
OBJECTIVES = ["epsilon", "score", "v", "x0", "levels"]  # the main job's
MARKS = {
    "cpu": [pytest.mark.slow],
    "gpu": [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ],
}
DEVICES = {"cpu": "cpu", "gpu": "cuda"}


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in MARKS.items()])
def accelerator(request):
    return request.param


def finished(prepared, accelerator, *options, path):
    return execute(prepared(f"trainer.accelerator={accelerator}", *options, path=path))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_learns_in_100_steps_and_resumes(prepared, accelerator, objective):
    """cuDNN's sums have no fixed order, so curves are equal only about as far as they are smooth."""
    options = [f"objective={objective}", f"trainer.accelerator={accelerator}"]
    options += ["trainer.max_steps=100", "trainer.val_check_interval=50"]
    whole = prepared(*options, path="whole")
    bound = execute(whole)["test"]["bpd"]["mean"]
    resumed = stop_after(prepared(*options, path="resumed"), 60)
    assert execute(resumed)["test"]["bpd"]["mean"] == pytest.approx(bound, rel=0.02)
    losses = column(whole, LOSS)
    assert len(losses) == len(column(resumed, LOSS)) == 100
    assert sum(losses[-20:]) < sum(losses[:20])
    assert column(resumed, LOSS)[:20] == pytest.approx(losses[:20], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.precision=bf16-mixed"],
        ["compile=true"],
        ["optimizer.fused=true", "trainer.precision=bf16-mixed"],
        ["data.pin_memory=true"],
    ],
)
def test_options_of_speed_leave_the_bound(prepared, accelerator, options):
    plain = finished(prepared, accelerator, path="plain")["test"]["bpd"]["mean"]
    fast = finished(prepared, accelerator, *options, path="fast")["test"]["bpd"]["mean"]
    assert fast == pytest.approx(plain, rel=0.05)


def test_convolutions_read_channels_last(accelerator):
    network = unet().to(DEVICES[accelerator])
    layouts = []

    def note(layer, inputs):
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.register_forward_pre_hook(note)
    network(*inputs_of(2, DEVICES[accelerator]))
    assert len(layouts) > 10 and all(layouts)


def test_two_processes_have_the_losses_and_the_bound_of_one(root, accelerator):
    """Equal losses at each step mean equal noise and times: they are of single items."""
    if accelerator == "gpu" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    options = ["trainer.max_steps=20", "trainer.val_check_interval=10", "data.batch_size=24"]
    for name, devices in (("one", 1), ("two", 2)):
        more = ["trainer=ddp", f"trainer.devices={devices}", f"trainer.accelerator={accelerator}"]
        end(command(f"name={name}", *more, *options), root)
    folders = [root / "logs" / "runs" / name for name in ("one", "two")]
    one, two = (column(folder, LOSS) for folder in folders)
    assert two[:5] == pytest.approx(one[:5], rel=1e-5)
    assert two == pytest.approx(one, rel=1e-3)
    bounds = [json.loads((f / "summary.json").read_text())["test"]["bpd"] for f in folders]
    assert bounds[1]["mean"] == pytest.approx(bounds[0]["mean"], rel=1e-3)


def test_samples_are_those_of_the_cpu_from_the_same_noise(prepared, accelerator):
    run = prepared("trainer.max_steps=50", path="run")
    execute(run)
    model = reopen(str(run / "checkpoints" / "last.ckpt")).model.eval()
    noise = torch.randn(4, *model.event, generator=torch.Generator().manual_seed(0))
    samples = []
    for device in ("cpu", DEVICES[accelerator]):
        model.to(device)
        sampler = DDIM(10)
        gammas = sampler.gammas(model.schedule, device)
        with torch.no_grad():
            *_, last = sampler.path(model.denoiser, gammas, noise.to(device))
        samples.append(last.cpu())
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-3, atol=1e-3)


class OnCpu:
    """Stands for the memory of a card."""

    def free(self, device):
        return 2**20

    def needed(self, call, device):
        call()
        return PROBE * 2**17


def test_pieces_of_a_batch_give_the_whole_batch(accelerator):
    device = DEVICES[accelerator]
    network, inputs = unet().to(device).eval(), inputs_of(50, device)
    memory = GPU_MEMORY if accelerator == "gpu" else OnCpu()
    pieces = Pieces(memory)
    with torch.no_grad():
        split = pieces(network, *inputs)
        torch.testing.assert_close(split, network(*inputs), rtol=1e-3, atol=1e-4)
    (size,) = pieces.sizes.values()
    assert size >= PROBE
    if accelerator == "gpu":
        assert memory.peak(torch.device(device)) > 0


def test_a_step_at_the_size_of_cifar_uses_the_card(accelerator):
    """At least a tenth of the dense bfloat16 peak; the figure is printed."""
    device, batch = DEVICES[accelerator], 2
    peak = CORE / UTILISATION
    if accelerator == "gpu":
        batch, card = 256, torch.cuda.get_device_name()
        peaks = [peak["16 bits"] for name, peak in PEAKS.items() if name in card]
        if not peaks:
            pytest.skip(f"no data sheet of {card}")
        (peak,) = peaks
    network = unet("unet_ddpm" if accelerator == "gpu" else "unet").to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=accelerator == "gpu"):
            loss = network(*inputs_of(batch, device)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    with counter:
        step()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    share = counter.get_total_flops() / min(times) / peak
    print(f"{min(times) * 1000:.1f} ms a step, {share:.1%} of the peak")
    assert share > 0.1 or accelerator == "cpu"


def unet(name="unet"):
    """Return a network of the configurations, for images of 3 x 32 x 32."""
    torch.manual_seed(0)
    keys = unresolved_config(compose_command("train", [f"denoiser={name}"]))["denoiser"]["network"]
    return build(keys, "denoiser.network", shape=(3, 32, 32), spacing=2 / 255)


def inputs_of(n, device):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(n, 3, 32, 32, generator=generator)
    return z.to(device), torch.linspace(-8, 6, n).to(device), None
