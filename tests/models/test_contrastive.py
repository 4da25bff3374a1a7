"""The contrastive model, compared with CLIP's formula, and its retrieval, computed by hand.

Neither batches nor processes change it.
"""

import math
from functools import partial

import pytest
import torch
from torch import distributed as dist
from torch.nn.functional import normalize

from tests.diffusion.oracles import normal, refused
from triptych.data.batch import Batch
from triptych.diffusion.condition import Condition, Labels, Part, Tokens
from triptych.models import contrastive
from triptych.models.contrastive import Contrastive, RetrievalAccounting, measure_retrieval
from triptych.networks.contrastive import ContrastiveNetwork

from .options import OPTIONS

SMALL = {"embedding": 6, "width": 4, "stages": 2, "text_width": 8, "depth": 1, "heads": 2}


def unit(n, d, seed):
    return normalize(normal(n, d, seed=seed))


# the loss
# -----------------------------------------------------------------------------------------------


def test_symmetric_cross_entropy_matches_clip():
    """Radford et al. 2021, fig. 3: logits = I_e T_e^T exp(t), cross-entropy of rows and columns."""
    u, v, t = unit(5, 3, 0), unit(5, 3, 1), 0.7
    expected = torch.zeros(5, dtype=torch.float64)
    for i in range(5):
        row = [math.exp(math.exp(t) * float(u[i] @ v[j])) for j in range(5)]
        column = [math.exp(math.exp(t) * float(u[j] @ v[i])) for j in range(5)]
        expected[i] = -0.5 * (math.log(row[i] / sum(row)) + math.log(column[i] / sum(column)))
    ours = contrastive.symmetric_cross_entropy(u, v, math.exp(t), torch.arange(5))
    torch.testing.assert_close(ours, expected)


# retrieval
# ----------------------------------------------------------------------------------------------


def test_retrieval_by_hand():
    """Of three texts, the first two are right for the first image and the last for the second."""
    v = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]).double()
    u = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    nats, right = measure_retrieval(u, v, 2.0, torch.tensor([[1, 1, 0], [0, 0, 1]]).bool())
    first = [math.exp(2 * c) for c in (0.0, 0.8, 0.0)]
    second = [math.exp(2 * c) for c in (1.0, 0.6, -1.0)]
    shares = (first[0] + first[1]) / sum(first), second[2] / sum(second)
    assert nats.tolist() == pytest.approx([-math.log(share) for share in shares])
    assert right.tolist() == [True, False]


@pytest.mark.parametrize("batch", [1, 4, 11])
def test_retrieval_accounting_ranks_all_texts_of_split(batch):
    """Text 4 is one of five; images of both classes 7 and 9 have it, so it is right for either."""
    u, texts = unit(11, 4, 0), unit(5, 4, 1)
    text = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 4, 1, 0])
    label = torch.tensor([7, 7, 9, 9, 9, 7, 7, 9, 7, 7, 7])
    accounting = RetrievalAccounting(4)
    accounting.scale = 3.0
    for start in range(0, 11, batch):
        part = slice(start, start + batch)
        accounting.update(u[part], texts[text[part]], text[part], label[part])
    found = accounting.compute().figures
    of_class = {7: [1, 1, 0, 0, 1], 9: [0, 0, 1, 1, 1]}
    fits = torch.tensor([of_class[k] for k in label.tolist()]).bool()
    nats, right = measure_retrieval(u, texts, 3.0, fits)
    assert found["cross_entropy"]["mean"] == pytest.approx(nats.mean().item(), rel=1e-12)
    assert found["cross_entropy"]["stderr"] == pytest.approx(nats.std().item() / math.sqrt(11))
    assert found["accuracy"]["mean"] == pytest.approx(right.double().mean().item())
    assert found["accuracy"]["n"] == 11
    accounting.reset()
    assert not accounting.compute().figures


def test_numbers_of_identifies_texts_by_unmasked_tokens():
    tokens = torch.randn(3, 4, 2)
    tokens[1, 2:] = tokens[0, 2:] + 1
    tokens[1, :2] = tokens[0, :2]
    mask = torch.tensor([[1, 1, 0, 0]] * 3).bool()
    a, b, c = contrastive.hash_texts(Part(tokens, mask=mask)).tolist()
    assert a == b != c and max(a, c) < 2**53


# the network
# --------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ContrastiveNetwork((3, 8, 8), {"text": Tokens(5, 7), "label": Labels(4)}, **SMALL).eval()


def test_contrastive_embeddings_are_normalized_and_scale_starts_as_clip(network):
    text = Part(torch.randn(4, 5, 7), mask=torch.arange(5) < torch.tensor([[1], [2], [5], [3]]))
    for found in network(torch.randn(4, 3, 8, 8), text):
        assert found.shape == (4, 6)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    assert network.scale.item() == pytest.approx(1 / 0.07)


def test_masked_tokens_do_not_change_text_embedding(network):
    tokens, mask = torch.randn(2, 5, 7), torch.tensor([[1, 1, 1, 0, 0]] * 2).bool()
    there = mask.unsqueeze(2)
    other, moved = torch.where(there, tokens, 9.0), torch.where(there, tokens.flip(1), 0.0)
    own, same, different = (network.texts(Part(t, mask=mask)) for t in (tokens, other, moved))
    torch.testing.assert_close(own, same)
    assert not torch.allclose(own, different, atol=1e-3)


def test_contrastive_network_refuses_data_without_text():
    make = partial(ContrastiveNetwork, (3, 8, 8))
    refused(lambda: make({"label": Labels(4)}), "needs images with text; use captioned data")
    wide = {"text": Tokens(5, 7)}
    refused(
        lambda: make(wide, text_width=10),
        "model.network.heads=4: must divide the number of channels, 10",
    )


# processes
# ----------------------------------------------------------------------------------------------

PAIRS, STEP = 6, 3


def pairs(part=slice(None)):
    tokens, x = normal(PAIRS, 5, 7, seed=2), normal(PAIRS, 3, 8, 8, seed=3)
    mask = torch.arange(5) < torch.tensor([[2], [3], [5], [1], [4], [5]])
    text = Condition(text=Part(tokens, mask=mask))[part]
    return Batch(x[part], text, torch.arange(PAIRS)[part])


def model():
    torch.manual_seed(0)
    network = ContrastiveNetwork((3, 8, 8), {"text": Tokens(5, 7)}, **SMALL)
    made = Contrastive(network, shape=(3, 8, 8), discrete=True, **OPTIONS)
    return made.double()  # sums in another order agree


def gradients(found, rank, world):
    """Return losses (B / W,) and DDP's gradient: that of the mean over the processes' means."""
    size = PAIRS // world
    nats = found.loss(pairs(slice(rank * size, (rank + 1) * size)), STEP, rank, world)
    nats.mean().backward()
    return nats.detach(), {name: p.grad / world for name, p in found.named_parameters()}


def work(rank, world, file, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    found = model()
    nats, of_rank = gradients(found, rank, world)
    found.before_accounting()
    mine = slice(0, 5) if rank == 0 else slice(5, PAIRS) if rank == 1 else slice(0, 0)
    with torch.no_grad():
        if rank < 2:
            found.eval()._evaluate_batch(pairs(mine), 1)
    account = found.accounting.compute().figures
    results.put((rank, nats.tolist(), {n: g.tolist() for n, g in of_rank.items()}, account))
    dist.barrier()
    dist.destroy_process_group()


def test_contrastive_loss_and_gradient_are_independent_of_world_size(tmp_path, world=3):
    """Each pair is compared with the whole global batch; the third process has no test items."""
    context = torch.multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = [(rank, world, tmp_path / "meet", results) for rank in range(world)]
    several = [context.Process(target=work, args=each) for each in arguments]
    for process in several:
        process.start()
    got = sorted(results.get(timeout=120) for _ in several)
    for process in several:
        process.join()
    whole = model()
    nats, of_one = gradients(whole, 0, 1)
    torch.testing.assert_close(
        torch.tensor([n for g in got for n in g[1]], dtype=torch.float64), nats
    )
    for name, gradient in of_one.items():
        added = sum(torch.tensor(g[2][name], dtype=torch.float64) for g in got)
        torch.testing.assert_close(added, gradient, rtol=1e-9, atol=1e-12)
    whole.before_accounting()
    with torch.no_grad():
        whole.eval()._evaluate_batch(pairs(), 1)
    for name, figure in whole.accounting.compute().figures.items():
        for g in got:
            assert g[3][name] == pytest.approx(figure)


def test_contrastive_scale_is_clamped_at_100_with_gradient():
    found = model()
    with torch.no_grad():
        found.network.log_scale.fill_(9.0)
    nats = found.loss(pairs(), STEP, 0, 1)
    nats.mean().backward()
    assert found.network.scale.item() == pytest.approx(100)
    assert found.network.log_scale.grad.item() != 0
    groups = found.parameter_groups()
    assert any(p is found.network.log_scale for p in groups[1]["params"])
    assert {p.ndim < 2 for p in groups[1]["params"]} == {True}, "gains, biases and the scale"
    assert {p.ndim < 2 for p in groups[0]["params"]} == {False}
    assert groups[1]["weight_decay"] == 0
    assert sum(len(g["params"]) for g in groups) == len([*found.parameters()])
