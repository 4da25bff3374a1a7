"""The pictures of a trajectory: the chosen moments, in files that a viewer can open."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from triptych.data.batch import Split
from triptych.diffusion.betas import Betas
from triptych.diffusion.condition import Condition
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import DDIM, Ancestral, DPMSolver
from triptych.diffusion.schedule import Linear
from triptych.run import pictures
from triptych.run.drawing import Drawing
from triptych.run.pictures import sample_trajectory, save_image_sequence


class Half(torch.nn.Module):
    def forward(self, z, gamma, condition):
        return z / 2


def generator():
    return torch.Generator().manual_seed(0)


def of(sampler, schedule, event):
    denoiser = Denoiser(Half(), Output("epsilon"), VariancePreserving())
    model = SimpleNamespace(
        denoiser=denoiser, schedule=schedule, event=event, adapt_sampler=lambda s: s
    )
    return denoiser, SimpleNamespace(model=model, sampler=sampler, denoiser=None)


def test_the_moments_lie_on_the_sampler_s_own_path(monkeypatch):
    monkeypatch.setattr(pictures, "FRAMES", 5)
    schedule, sampler, shape = Linear(-8.0, 5.0), DPMSolver(8), (3, 1, 6, 5)
    denoiser, drawing = of(sampler, schedule, shape[1:])
    x, gamma = sample_trajectory(drawing, None, 3, generator(), 3)
    assert x.shape == (5, *shape)
    torch.testing.assert_close(gamma, sampler.gammas(schedule)[::2])
    torch.testing.assert_close(x[0], torch.randn(shape, generator=generator()))
    torch.testing.assert_close(x[-1], sampler(denoiser, schedule, shape, generator=generator()))
    # There are never more moments than the sampler has.
    monkeypatch.setattr(pictures, "FRAMES", 50)
    assert len(sample_trajectory(drawing, None, 3, generator(), 3)[0]) == 9


@pytest.mark.parametrize(
    "schedule", [Linear(-8.0, 5.0), Betas(num_train_timesteps=20, beta_end=0.3)]
)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_it_ends_with_the_first_of_the_samples(schedule, steps):
    """The last frame is the sample, for each sampler and in chunks.

    With betas, it is the estimate at z_0.
    """
    sampler = Ancestral(steps, chunk=3)
    denoiser, drawing = of(sampler, schedule, (2,))
    x, gamma = sample_trajectory(drawing, None, 8, generator(), max_shown=5)
    samples = sampler(denoiser, schedule, (8, 2), generator=generator())
    assert len(x) == len(gamma) == min(steps + 1, 9)
    torch.testing.assert_close(x[-1], samples[:5])


def test_the_strip_is_told_what_the_sampler_is_told(tmp_path, monkeypatch):
    """In a cascade's stage, the condition is noised before sampling from it."""
    told, mode = [], lambda *_: None
    denoiser, drawing = of(DDIM(3), Linear(-8.0, 5.0), (2,))
    denoiser.network.register_forward_pre_hook(
        lambda _, args: told.append(args[2].parts["low"].value)
    )
    model = SimpleNamespace(
        **vars(drawing.model), device="cpu", training=False, eval=mode, train=mode
    )
    model.to_picture = lambda x: x
    noised = Drawing(
        model, SimpleNamespace(shape=(2,)), DDIM(3), prepare=lambda c, _: c.map(lambda x: x + 1)
    )
    monkeypatch.setattr(pictures, "_plot_trajectory", lambda *_: pictures.new_figure(1, 1))
    pictures.save_trajectory(noised, Condition(low=torch.zeros(4, 2)), 3, 0, tmp_path)
    assert len(told) == 3 and all(one.equal(torch.ones(3, 2)) for one in told)


def test_a_strip_has_a_row_a_sample(tmp_path):
    for channels, mode in ((1, "L"), (3, "RGB")):
        x = torch.linspace(-1, 1, 4).view(4, 1, 1, 1, 1).expand(4, 3, channels, 6, 5)
        save_image_sequence(x, tmp_path / "strip.png")
        with Image.open(tmp_path / "strip.png") as strip:
            factor = 384 // (4 * 6)
            assert strip.mode == mode and strip.size == (4 * 6 * factor, 3 * 7 * factor)
            ends = [strip.getpixel((factor * column + 1, 1)) for column in (0, 18)]
            assert ends == ([0, 255] if channels == 1 else [(0,) * 3, (255,) * 3])


def test_a_cell_without_an_image_is_grey(tmp_path):
    data = SimpleNamespace(shape=(1, 8, 8), levels=256)
    pictures.save_picture(-torch.ones(7, 1, 8, 8), data, tmp_path / "real.png")
    picture = Image.open(tmp_path / "real.png")
    black, empty = (
        picture.getpixel((picture.width * at // 6, picture.height * 5 // 6)) for at in (1, 5)
    )
    assert (black, empty) == (0, pictures.GREY)


def test_the_real_images_are_from_all_of_the_test_set(tmp_path, monkeypatch):
    """The first images of a folder are all of one class."""
    images = torch.linspace(-1, 1, 12)[:, None, None, None].expand(12, 1, 8, 8)
    data = SimpleNamespace(
        shape=(1, 8, 8), shown="test", splits={"test": Split(images, Condition.of(label=None))}
    )
    shown = []
    monkeypatch.setattr(pictures, "save_picture", lambda x, *_: shown.append(x))
    for n in (3, 50):
        pictures.save_real_images(data, n, tmp_path / "real.png")
    assert torch.equal(shown[0], images[[0, 4, 8]]) and torch.equal(shown[1], images)
