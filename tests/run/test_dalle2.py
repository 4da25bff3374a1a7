"""DALL-E 2 from end to end at a tiny size: encoder, classifier, prior, decoder and upsampler."""

import json

import pytest
import torch

from triptych.cli.sample import sample
from triptych.config.compose import compose_command, without_hydra
from triptych.data.captions import project_to_sphere
from triptych.errors import UserError
from triptych.run.build import build_drawing
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.other_runs import OtherRuns
from triptych.run.reopen import reopen
from triptych.run.sample import interpolate_images

SIZES = ("train_size=160", "val_size=90", "test_size=40")
STEPS = ("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "threads=1",
         "trainer.log_every_n_steps=1", "bound.repeats=1", "bound.val_repeats=1", "samples.n=4")  # fmt: skip
OF_MODEL = {
    "shapes_classifier": ["model.network.width=8"],
    "dalle2_contrastive": [
        f"model.network.{key}" for key in ("width=8", "embedding=6", "text_width=8")
    ],
    "dalle2_prior": ["denoiser.network.width=8", "denoiser.network.depth=1", "sampler.steps=2"],
    "dalle2_decoder": ["denoiser.network.widths=[8,8]", "sampler.steps=2"],
}
OF_MODEL["dalle2_upsampler"] = [*OF_MODEL["dalle2_decoder"], "measures.n=8", "measures.repeats=1"]
DRAWN = ("samples.n=4", "sampler.steps=2", "measures.n=8", "measures.repeats=1", "trainer.accelerator=cpu",
         "threads=1")  # fmt: skip


@pytest.fixture
def trained(prepared):
    """``trained("dalle2_prior")``: the tiny run of an experiment, and its summary."""

    def make(name):
        at = "data.base." if name == "dalle2_prior" else "data."
        small = [*STEPS, *(at + size for size in SIZES), *OF_MODEL[name]]
        run = prepared(f"experiment={name}", *small, path=name, tiny=False)
        return run, execute(run)

    return make


@pytest.mark.slow
def test_dalle2_prior_decoder_and_upsampler_draw_from_captions(trained, prepared, root):
    run, summary = trained("dalle2_contrastive")
    assert summary["test"]["accuracy"]["n"] == 40 and (run / "encoder.pt").is_file()
    trained("shapes_classifier")
    prior, summary = trained("dalle2_prior")
    assert summary["test"]["nats_per_dim"]["n"] == 40
    decoder, _ = trained("dalle2_decoder")
    upsampler, summary = trained("dalle2_upsampler")
    measured = {"prompt_accuracy", "shape_accuracy", "retrieval", "prompt_accuracy_held_out"}
    assert measured <= {*summary["measures"]}
    assert summary["measured"]["floor"]["retrieval"]["median"] <= 1
    assert (upsampler / "samples" / "prompts.png").is_file()

    whole = prepared("experiment=dalle2", *DRAWN, path="dalle2", tiny=False)
    measured = execute(whole)["measures"]
    assert measured["prompt_accuracy"]["n"] == 8 and measured["prompt_accuracy_held_out"]["n"] == 4
    other = ["condition_from.embedding=text_embedding", "measures.n=0"]
    execute(prepared("experiment=dalle2", *DRAWN, *other, path="text", tiny=False))
    own = ["condition_from.embedding=embedding", "condition_from.low=low", "measures.n=0"]
    execute(prepared("experiment=dalle2", *DRAWN, *own, path="image", tiny=False))
    pictures = [
        torch.load(root / "logs" / "runs" / n / "samples" / "final.pt")["x"]
        for n in ("dalle2", "text", "image", "dalle2_upsampler")
    ]
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])
    torch.testing.assert_close(pictures[2], pictures[3])  # a part in its own place changes nothing
    json.dumps(execute(RunDirectory(whole.path)).record, allow_nan=False)

    stages = f"cascade=[{prior.path},{decoder.path},{upsampler.path}]"
    small = ["n=3", f"stages=[{','.join(3 * ['{sampler.steps:2}'])}]", f"out={root}/drawn"]

    def drawn_of(*asked):
        return torch.load(sample(without_hydra(compose_command("sample", asked))) / "samples.pt")[
            "x"
        ]

    x = drawn_of(stages, "prompt=two blue circles on the left", *small)
    assert x.shape == (3, 3, 16, 16)
    few = ["sampler=ddim", "sampler.steps=2", "n=3", f"out={root}/drawn"]
    like = [drawn_of(f"ckpt={ckpt}", "like=[3,7]", *few) for ckpt in (decoder.path, whole.path)]
    assert [x.shape for x in like] == [(3, 3, 8, 8), (3, 3, 16, 16)]
    with pytest.raises(UserError, match="this model is not conditioned on image embeddings"):
        drawn_of(f"ckpt={prior.path}", "like=[3]", *few)

    opened = reopen(str(decoder.path))
    config = opened.config | {"condition_from": {"embedding": str(prior.path)}}
    drawing = build_drawing(config, opened.model, opened.data, OtherRuns(config))
    asked = drawing.condition(5)
    drawn = drawing.complete_condition(asked, 5, drawing.generator(0)).parts["embedding"].value
    torch.testing.assert_close(drawn, project_to_sphere(drawn))
    assert not torch.allclose(drawn, asked.parts["embedding"].value)

    def pictures_like(*asked):
        return interpolate_images(drawing, asked, 5)

    own = opened.data.splits["test"].condition.parts["embedding"].value
    torch.testing.assert_close(pictures_like(3), own[3].expand(5, -1))
    torch.testing.assert_close(pictures_like(3, 7)[[0, -1]], own[[3, 7]])
    torch.testing.assert_close(pictures_like(3, 7), project_to_sphere(pictures_like(3, 7)))
    for part, what, words in (
        ("embedding", "/nowhere", r"condition_from.embedding=/nowhere: no .* there|no such"),
        ("embedding", "text", r"text is Tokens\(.*embedding needs Vectors\(width=6\)"),
        ("low", "embedding", "the model has no condition 'low'; use one of {embedding}"),
    ):
        config = opened.config | {"condition_from": {part: what}}
        with pytest.raises(UserError, match=words):
            build_drawing(config, opened.model, opened.data, OtherRuns(config))
    opened = reopen(str(upsampler.path))
    config = opened.config | {
        "condition_from": {"embedding": "text_embedding", "low": str(decoder.path)}
    }
    drawing = build_drawing(config, opened.model, opened.data, OtherRuns(config))
    told = drawing.complete_condition(drawing.condition(5), 5, drawing.generator(0))
    assert told.parts["low"].value.shape == (5, 3, 8, 8)
    texts = opened.data.splits["val"].condition.parts["text_embedding"].value[:5]
    torch.testing.assert_close(told.parts["embedding"].value, texts)

    def low_pictures(**changes):
        drawing = build_drawing(
            config | {"stages": changes}, opened.model, opened.data, OtherRuns(config)
        )
        return (
            drawing.complete_condition(drawing.condition(5), 5, drawing.generator(0))
            .parts["low"]
            .value
        )

    as_it_is = low_pictures()
    torch.testing.assert_close(as_it_is, told.parts["low"].value)
    steps = reopen(str(decoder.path)).config["sampler"]["steps"]
    torch.testing.assert_close(as_it_is, low_pictures(low={"sampler.steps": steps}))
    other = low_pictures(low={"sampler.steps": steps + 1})
    assert not torch.equal(as_it_is, other)
    torch.testing.assert_close(other, low_pictures(low={"sampler": {"steps": steps + 1}}))
    for changes, words in (
        ({"x": {}}, "stages.x: no run draws this condition; leave it out"),
        (
            {"embedding": {"sampler.steps": 2}},
            "stages.embedding: no run draws this condition; leave it out",
        ),
        (
            {"low": {"sampler.stops": 2}},
            "stages.low.sampler.stops=2: not a sampling key of the stage's run",
        ),
        (
            {"low": {"model.levels": 2}},
            "stages.low.model.levels=2: not a sampling key of the stage's run; use",
        ),
    ):
        with pytest.raises(UserError, match=words):
            low_pictures(**changes)

    at = ["measures.over=[sampler.steps,stages.low.sampler.steps]", "measures.values=[1,2]"]
    both = execute(prepared("experiment=dalle2", *DRAWN, *at, path="curve", tiny=False))[
        "measures_over"
    ]
    assert both["key"] == "sampler.steps" and [row["value"] for row in both["rows"]] == [1, 2]
    at[0] = "measures.over=stages.low.sampler.steps"
    one = execute(prepared("experiment=dalle2", *DRAWN, *at, path="one", tiny=False))[
        "measures_over"
    ]["rows"]
    assert both["rows"][1]["measures"] == one[1]["measures"] != one[0]["measures"]
