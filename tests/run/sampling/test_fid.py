"""FID over the InceptionV3 that the papers use; its weights are random here, so nothing is fetched."""

import os
import pickle

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from triptych.diffusion.measures import frechet_distance
from triptych.errors import UserError
from triptych.run.execute import execute
from triptych.run.inception import inception_features, open_inception


class Stranger:
    """A pickle that does something when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as that of the published weights, its numbers random: the real network, untrained."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.torch.load", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        path.touch()
        torch.manual_seed(0)
        made = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(made.state_dict(), path)
    return path


def test_it_is_torchmetrics_fid(weights):
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randint(0, 256, (6, 1, 8, 8), generator=g).byte() for _ in range(2))
    inception = open_inception(str(weights))
    features = [inception_features(inception, x / 127.5 - 1) for x in (a, b)]
    assert features[0].shape == (6, 2048)
    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(weights))
    for x, real in ((a, True), (b, False)):
        metric.update(x.expand(-1, 3, -1, -1), real=real)
    assert frechet_distance(*features) == pytest.approx(metric.compute().item(), rel=1e-3)


@pytest.mark.slow
def test_a_run_reports_it_beside_its_floor(weights, prepared):
    execute(seer := prepared("model=classifier", "model.noise=false", "model.network.width=8", path="seer"))
    ckpt = f"measures.classifier={seer / 'checkpoints' / 'last.ckpt'}"
    summary = execute(prepared("measures.n=8", "measures.repeats=1", ckpt, f"measures.inception={weights}"))
    assert summary["measures"]["fid"]["mean"] > 0 and summary["measured"]["floor"]["fid"]["median"] > 0


def test_weights_that_are_not_there_or_are_none(tmp_path):
    with pytest.raises(UserError, match=r"^measures.inception=/nowhere: no such file; pass pt_inception-"):
        open_inception("/nowhere")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match="not the weights of FID's InceptionV3"):
        open_inception(str(tmp_path / "empty.pth"))
    (other := tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(
        UserError, match=r"^measures.inception=.*other.pth: not the weights of FID's InceptionV3"
    ):
        open_inception(str(other))
    other.write_bytes(pickle.dumps(Stranger(str(tmp_path / "owned")), protocol=2))
    with pytest.raises(UserError, match=r"not the weights of FID's InceptionV3"):
        open_inception(str(other))
    assert not (tmp_path / "owned").exists()
    torch.save({"stranger": torch.ones(2)}, other)
    with pytest.raises(UserError, match=r"not the weights of FID's InceptionV3"):
        open_inception(str(other))
