"""FID with the InceptionV3 of the papers; its weights are random here, so nothing is downloaded."""

import io
import pickle

import numpy as np
import pytest
import torch
import torch_fidelity
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from tests.security.strangers import Opener
from triptych.diffusion.measures import frechet_distance
from triptych.errors import UserError
from triptych.files import file_digest
from triptych.run.execute import execute
from triptych.run.judges import inception_features, open_inception, read_statistics


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Write a weights' file like the published one, with random numbers for the real network."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.torch.load", lambda *_, **__: {}
        )
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        path.touch()
        torch.manual_seed(0)
        made = NoTrainInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
    torch.save(made.state_dict(), path)
    return path


@pytest.mark.slow
def test_it_is_torchmetrics_fid(weights, tmp_path):
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randint(0, 256, (6, 1, 8, 8), generator=g).byte() for _ in range(2))
    inception = open_inception(str(weights))
    features = [inception_features(inception, x / 127.5 - 1) for x in (a, b)]
    assert features[0].shape == (6, 2048)
    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(weights))
    for x, real in ((a, True), (b, False)):
        metric.update(x.expand(-1, 3, -1, -1), real=real)
    assert frechet_distance(*features) == pytest.approx(metric.compute().item(), rel=1e-3)
    np.savez(path := tmp_path / "true.npz", **statistics(features[0]))
    published = read_statistics(str(path))
    assert frechet_distance(published, features[1]) == pytest.approx(
        frechet_distance(*features), rel=1e-9
    )


@pytest.mark.slow
def test_it_is_torch_fidelitys(weights):
    """torch-fidelity has its own code to decode, resize, and take a matrix's square root."""
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randint(0, 256, (6, 3, 64, 64), generator=g).byte() for _ in range(2))
    inception = open_inception(str(weights))
    features = [inception_features(inception, x / 127.5 - 1) for x in (a, b)]
    found = torch_fidelity.calculate_metrics(
        input1=Plain(a), input2=Plain(b), fid=True, cuda=False, batch_size=6, verbose=False, cache=False,
        feature_extractor_weights_path=str(weights),
    )["frechet_inception_distance"]  # fmt: skip
    assert frechet_distance(*features) == pytest.approx(found, rel=1e-3)


class Plain(torch.utils.data.Dataset):
    """Data of images without labels."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def statistics(features):
    x = features.double()
    return {"mu": x.mean(0).numpy(), "sigma": x.T.cov().numpy()}


@pytest.mark.slow
def test_a_run_reports_it_beside_its_floor(weights, prepared, tmp_path):
    """FID works without a classifier, and against published statistics.

    The result records the files.
    """
    few = "measures.n=8", "measures.repeats=1", f"measures.inception={weights}"
    summary = execute(prepared(*few))
    assert (
        summary["measures"]["fid"]["mean"] > 0 and summary["measured"]["floor"]["fid"]["median"] > 0
    )
    assert summary["measured"]["files"] == {"inception": file_digest(weights)}
    x = torch.randn(40, 2048, generator=torch.Generator().manual_seed(0))
    np.savez_compressed(path := tmp_path / "true.npz", **statistics(x))
    other = execute(prepared(*few, f"measures.statistics={path}", path="other"))
    assert other["measures"]["fid"]["mean"] > 10 * summary["measures"]["fid"]["mean"]
    assert other["measured"]["files"] == summary["measured"]["files"] | {
        "statistics": file_digest(path)
    }


def test_statistics_that_are_not_there_or_are_none(tmp_path):
    file, words = (
        tmp_path / "true.npz",
        r"^measures.statistics=.*: not the statistics of FID; pass an .npz",
    )
    good = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    small = {"mu": np.zeros(64), "sigma": np.eye(64)}
    with pytest.raises(UserError, match=words):
        read_statistics(str(file))
    for bad in (
        small,
        {"sigma": np.eye(2048)[:64]},
        {"mu": np.array([{}])},
        {"mu": np.full(2048, np.nan)},
    ):
        np.savez(file, **good | bad)
        with pytest.raises(UserError, match=words):
            read_statistics(str(file))


def test_weights_that_are_not_there_or_are_none(tmp_path):
    torch.save({"stranger": torch.ones(2)}, stranger := io.BytesIO())
    opener, other = pickle.dumps(Opener(tmp_path / "owned"), protocol=2), tmp_path / "other.pth"
    for content in (b"", b"no weights", opener, stranger.getvalue()):
        other.write_bytes(content)
        with pytest.raises(
            UserError, match=f"^measures.inception={other}: not the weights of FID's "
        ):
            open_inception(str(other))
    assert not (tmp_path / "owned").exists()
