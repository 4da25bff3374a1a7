"""The posterior mean from a model's score, against the oracle's, in the summary and in the report."""

from triptych.run.execute import execute
from triptych.run.read import read_run
from triptych.study.compare import compare
from triptych.study.curves import posterior_mean_error
from triptych.study.panels import colours
from triptych.study.style import styled, to_svg

SMALL = ("data=ring", "denoiser=mlp", "data.test_size=300", "data.val_size=100", "data.train_size=500")


def test_it_is_exact_for_the_oracle_and_not_for_a_network_of_a_few_steps(prepared):
    exact = execute(prepared(*SMALL, "model=oracle", path="oracle"))["tweedie"]
    run = prepared(*SMALL, path="network")
    found = execute(run)["tweedie"]
    assert len(exact["gamma"]) == 20 and max(exact["excess"]) < 1e-8
    assert max(found["excess"]) > 0.1 and found["spread"] == exact["spread"]
    # at the noisiest level the posterior is nearly the data: variance 1.5^2 / 2 + 0.15^2
    assert abs(found["spread"][-1] - 1.15) < 0.15
    (comparison,) = compare([read_run(run.path)])
    with styled():
        figure = posterior_mean_error(comparison, colours({c.label: c.label for c in comparison.cells}))
    # SVG has its text as text: a tick in TeX would be shown with its dollars
    assert "0.001<" in to_svg(figure, "t", "") and "$" not in to_svg(figure, "t", "")
