"""The result in one line."""

import pytest

from triptych.run.summary import check_seal, one_line


def figure(mean, stderr=0.02, n=297, **more):
    return {"mean": mean, "stderr": stderr, "n": n, **more}


def test_a_small_error_keeps_its_digits():
    parts = {f"nats_per_dim_{t}": figure(0.1) for t in ("prior", "reconstruction", "diffusion")}
    test = {"nats_per_dim": figure(0.3), **parts, "gap": figure(1.32e-5, 2.1e-6)}
    assert "0.0000132 ± 0.0000021 above the truth" in one_line({"test": test})
    assert "0.0771 ± 0.0012 above" in one_line({"test": test | {"gap": figure(0.07712, 0.00123)}})


def test_the_ode_is_said_of_its_own_items():
    parts = {f"bpd_{t}": figure(0.6) for t in ("prior", "reconstruction", "diffusion")}
    ode = {"bpd_ode": figure(1.95, n=64), "bpd_ode_bound": figure(1.88, n=64)}
    line = one_line({"test": {"bpd": figure(1.89), **parts, **ode}})
    assert "by the ODE 1.9500 ± 0.0200 on 64 of them, whose bound is 1.8800 ± 0.0200" in line


def test_a_bound_without_its_terms_is_no_result():
    bound = {
        "bpd": figure(1.8),
        **{f"bpd_{t}": figure(0.6) for t in ("prior", "reconstruction", "diffusion")},
    }
    check_seal({"test": bound})
    for term in ("bpd_prior", "bpd_diffusion"):
        with pytest.raises(ValueError, match="is missing"):
            check_seal({"test": {key: value for key, value in bound.items() if key != term}})
    with pytest.raises(ValueError, match="is missing"):
        check_seal({"val": bound | {"bpd": {"mean": 1.8}}})
