r"""Embeddings of images and texts by a contrastive run, for data whose conditions hold them.

An embedding here is sqrt(d) times a unit vector of d dimensions, so that its entries are of size about
one, as noise schedules and networks expect.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from triptych.config.archive import go_through
from triptych.config.trust import import_class
from triptych.data.base import DataError
from triptych.data.batch import Split
from triptych.declare import FilePath
from triptych.diffusion.condition import Condition, Kind, Part, Tokens, Vectors
from triptych.files import open_regular
from triptych.networks.contrastive import ContrastiveNetwork

FILE = "encoder.pt"  # what a run of model=contrastive leaves in its directory
ROWS = 512  # items embedded at a time
IMAGE, TEXT = "embedding", "text_embedding"  # the parts of a condition


class Embedder:
    """The two towers of a contrastive run, with the weights that it reported, on the CPU.

    Args:
        path: the run's directory, or the file ``encoder.pt`` of it. That may be a stranger's: it is read as
            plain data, its class has to be one that a configuration may name, and its weights take no more
            memory than the file. DataError: no such file, or no encoder's.
        key: that names it, for messages.
    """

    def __init__(self, path: FilePath, key: str = "data.embeddings") -> None:
        self.what = f"{key}={path}"
        file = Path(path).expanduser()
        file = file / FILE if file.is_dir() else file
        fix = "needs the directory of a finished run of model=contrastive"
        if not file.is_file():
            raise DataError(f"{self.what}: no {FILE} there; {fix}")
        try:
            with open_regular(file) as stream:
                go_through(stream, str(file), FILE)
                stream.seek(0)
                about = torch.load(stream, map_location="cpu", weights_only=True)
            if sum(t.numel() * t.element_size() for t in about["state"].values()) > file.stat().st_size:
                raise ValueError("larger than its file")
            kind, shape, text = import_class(about["_target_"]), tuple(about["shape"]), Tokens(*about["text"])
            if not issubclass(kind, ContrastiveNetwork):
                raise TypeError(about["_target_"])
            with torch.device("meta"):  # no memory but that of the file's own tensors
                network = kind(shape, {"text": text}, **about["sizes"])
            network.load_state_dict(about["state"], assign=True)
        except Exception as error:  # whatever a stranger's file makes its readers raise
            raise DataError(f"{self.what}: its {FILE} cannot be read; {fix}") from error
        self.name = hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
        self.network = network.eval().requires_grad_(False)
        self.shape, self.text, self.width = shape, text, network.embedding
        self.conditions: dict[str, Kind] = dict.fromkeys((IMAGE, TEXT), Vectors(self.width))  # ``add_to``'s

    def check(self, shape: tuple[int, ...], text: Kind) -> None:
        """Raise DataError unless it was trained on images of ``shape`` and on texts like ``text``."""
        if self.shape != shape or self.text != text:
            problem = f"of images {self.shape} with {self.text}, the data's are {shape} with {text}"
            raise DataError(f"{self.what}: {problem}; needs a contrastive run on the same data")

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """Return embeddings (n, d) of images x (n, C, H, W)."""
        return self._scaled([self.network.images(part) for part in x.split(ROWS)])

    @torch.no_grad()
    def texts(self, text: Part) -> Tensor:
        """Return embeddings (n, d) of texts."""
        return self._scaled([self.network.texts(c.parts["text"]) for c in Condition(text=text).split(ROWS)])

    def _scaled(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([torch.zeros(0, self.width), *parts]) * self.width**0.5

    @torch.no_grad()
    def add_to(self, split: Split, whole: Split) -> Split:
        """Return the split with embeddings of its texts, and of ``whole``'s images, in its condition too."""
        assert split.condition is not None
        rows = torch.arange(len(whole)).split(ROWS)
        images = self._scaled([self.network.images(whole.batch(some).x) for some in rows])
        texts = self.texts(split.condition.parts["text"])
        return replace(split, condition=split.condition.together(Condition(**{IMAGE: images, TEXT: texts})))


def on_sphere(embedding: Tensor) -> Tensor:
    """Project embeddings (n, d) onto the sphere of those of images: sqrt(d) e / |e|."""
    size = embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return embedding * (embedding.shape[1] ** 0.5 / size)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Interpolate spherically from embeddings a (share 0) to b (share 1), (n, d) each, share t (n,).

    sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, w the angle between them (Ramesh et al. 2022, sec. 3.2),
    for a and b of one length; the straight line where they point the same way.
    """
    angle = torch.cosine_similarity(a, b, dim=1).clamp(-1, 1).arccos().unsqueeze(1)
    share = share.unsqueeze(1)
    near = angle.sin().abs() < 1e-4
    sine = torch.where(near, 1.0, angle.sin())
    of_a = torch.where(near, 1 - share, ((1 - share) * angle).sin() / sine)
    of_b = torch.where(near, share, (share * angle).sin() / sine)
    return of_a * a + of_b * b
