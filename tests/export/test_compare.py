"""Figures of a comparison, worked by hand, and the gates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dit_compress.core.errors import UserError
from dit_compress.export.compare import MAX_DB, Comparison, compare, gate_db, judge


def test_values_by_hand() -> None:
    # Error 0.1 everywhere against a peak of 2: 20·log10(2 / 0.1) = 26.0206 dB.
    found = compare(np.array([2.0, -1.0, 0.0, 0.0]), np.array([2.1, -0.9, 0.1, -0.1]))
    assert found.psnr_db == pytest.approx(26.0206, abs=1e-4)
    assert found.relative_l2 == pytest.approx(math.sqrt(0.04 / 5))
    assert found.max_abs == pytest.approx(0.1)
    assert (found.peak, found.nonfinite) == (2.0, 0)


def test_typical_peak_counts_where_it_is_larger() -> None:
    reference, candidate = np.array([0.1, 0.0]), np.array([0.1, 0.1])
    assert compare(reference, candidate).psnr_db == pytest.approx(20 * math.log10(math.sqrt(2)))
    assert compare(reference, candidate, typical_peak=1.0).psnr_db == pytest.approx(20 * math.log10(10 * math.sqrt(2)))
    assert compare(reference, candidate, typical_peak=1.0).relative_l2 == pytest.approx(1.0)


def test_equal_arrays_count_as_300_db() -> None:
    assert compare(np.ones(3), np.ones(3)).psnr_db == MAX_DB


def test_zero_reference_is_measured_against_one() -> None:
    assert compare(np.zeros(4), np.zeros(4)).psnr_db == MAX_DB
    found = compare(np.zeros(4), np.full(4, 1e-3))
    assert found.psnr_db == pytest.approx(60.0)
    assert found.relative_l2 == pytest.approx(1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_values_are_counted_and_refused(bad: float) -> None:
    found = compare(np.ones(3), np.array([1.0, bad, bad]))
    assert found.nonfinite == 2
    assert judge(found, "float16") == "refused"
    assert found.as_data()["psnr_db"] is None


def test_shapes_must_agree_and_the_source_must_be_finite() -> None:
    with pytest.raises(UserError, match="shape"):
        compare(np.ones(3), np.ones(4))
    with pytest.raises(UserError, match="source model itself"):
        compare(np.array([math.nan]), np.ones(1))


@pytest.mark.parametrize(
    ("psnr_db", "arithmetic", "verdict"),
    [
        (70.0, "float32", "passed"),
        (69.9, "float32", "below"),
        (39.9, "float32", "refused"),
        (50.0, "float16", "passed"),
        (49.9, "float16", "below"),
        (39.9, "float16", "refused"),
    ],
)
def test_gates(psnr_db: float, arithmetic: str, verdict: str) -> None:
    assert judge(Comparison(psnr_db, 0.0, 0.0, 1.0, 0), arithmetic) == verdict
    assert gate_db("float32") == 70


@pytest.mark.parametrize(("bits", "float32", "float16"), [(32, 70, 50), (16, 60, 50), (8, 40, 40), (5, 40, 40), (4, 35, 35)])
def test_gates_by_bits(bits: int, float32: float, float16: float) -> None:
    """What the weights' rounding costs in float32 arithmetic is no fault of the graph."""
    assert (gate_db("float32", bits), gate_db("float16", bits)) == (float32, float16)


def test_worst_of_several() -> None:
    worst = Comparison.worst([Comparison(80.0, 0.1, 0.2, 1.0, 0), Comparison(60.0, 0.05, 0.3, 2.0, 1)])
    assert worst == Comparison(60.0, 0.1, 0.3, 2.0, 1)
