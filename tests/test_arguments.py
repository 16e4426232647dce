"""Checks of arguments: each refuses what it should, and says the argument, the value and what is valid."""

import pickle
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from ticks.arguments import ArgumentError, above, at_least, below_one, not_negative, one_of, share, under, with_path
from ticks.strategy.refusals import Refused, refused


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: at_least(1, d_model=0), "d_model=0 must be at least 1"),
        (lambda: at_least(1, d_model=True), "d_model=True must be a whole number, at least 1"),
        (lambda: at_least(1, d_model=1.5), "d_model=1.5 must be a whole number, at least 1"),
        (lambda: at_least(0, most=9, of=" steps", delay=10), "delay=10 must be at least 0 and at most 9 steps"),
        (lambda: at_least(0, of=" steps", delay="a"), "delay='a' must be a whole number of steps, at least 0"),
        (lambda: above(0, seconds=0), "seconds=0 must be a finite number above 0"),
        (lambda: above(0, seconds=float("inf")), "seconds=inf must be a finite number above 0"),
        (lambda: above(0, seconds=10**400), f"seconds={10**400} must be a finite number above 0"),
        (
            lambda: above(0, most=9, of=" s", t=10),
            "t=10 must be a finite number of s above 0 and at most 9",
        ),
        (lambda: not_negative(lr=-1), "lr=-1 must not be negative"),
        (lambda: not_negative(lr=float("nan")), "lr=nan must be a finite number"),
        (lambda: share(dropout=1.5), "dropout=1.5 must be from 0 to 1"),
        (lambda: below_one(momentum=1.0), "momentum=1.0 must be from 0 to below 1"),
        (lambda: below_one(betas=(0.9, 1.0)), "betas=[0.9, 1.0] must be from 0 to below 1"),
        (lambda: below_one(betas=[0.9]), "betas=[0.9] must be two numbers"),
        (lambda: one_of(("a", "b"), norm="c"), "norm='c' is unknown; known: a, b"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_valid(check: Callable[[], None], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check()
    assert str(caught.value) == message


def test_right_values_pass() -> None:
    at_least(0, most=1, a=0, b=1)
    above(0, a=1e-9)
    above(0, most=1, a=1)
    not_negative(a=0, b=2.5)
    share(a=0, b=1)
    below_one(a=0, betas=(0.9, 0.99))
    one_of(("a",), a="a")
    at_least(1, of_numpy=np.int64(1))
    share(of_numpy=np.float32(0.5), fraction=Fraction(1, 2))


def test_the_mistake_can_be_read_and_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(ArgumentError("path", "x", ": no file")))
    assert (error.argument, error.value, error.valid, str(error)) == ("path", "x", ": no file", "path='x': no file")


def test_a_mistake_is_told_with_the_place_of_its_argument() -> None:
    assert under("model", ArgumentError("d_ff", 0, "must be at least 1")) == "model.d_ff=0 must be at least 1"
    assert under("model", ValueError("d_ff=0 is somebody else's")) == "model: d_ff=0 is somebody else's"
    assert with_path("model", ArgumentError("d_ff", 0, "must be at least 1")) == "model.d_ff=0 must be at least 1"
    assert with_path("model", ValueError("too deep")) == "too deep"


def test_what_a_part_of_the_strategy_refuses_is_named_by_the_strategys_arguments() -> None:
    error = pickle.loads(pickle.dumps(refused("sync", ArgumentError("fragments", 0, "must be at least 1"))))
    assert isinstance(error, Refused)
    assert str(error) == "sync.fragments=0 must be at least 1"
    assert with_path("strategy", error) == "strategy.sync.fragments=0 must be at least 1"
    assert with_path("strategy", refused("sync", ValueError("nothing to send"))) == "sync: nothing to send"
