"""Results one by one, from one process or several."""

from __future__ import annotations

import operator
import os
from functools import partial

import pytest

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.in_parallel import cores, function_module, in_parallel


def test_one_worker_is_this_process_and_stops_where_its_results_are_no_longer_asked_for() -> None:
    done = []
    results = in_parallel(lambda thing: done.append(thing) or os.getpid(), range(5), 1)
    assert next(results) == os.getpid() and done == [0]


def test_the_module_that_workers_load_first_is_that_of_the_function_inside_a_partial() -> None:
    assert function_module(partial(in_parallel, str)) == function_module(in_parallel) == in_parallel.__module__


def test_there_is_a_core() -> None:
    assert cores() >= 1


@pytest.mark.slow
def test_several_workers_give_the_results_in_order() -> None:
    assert list(in_parallel(partial(operator.mul, 3), range(50), 2)) == [3 * thing for thing in range(50)]


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(partial(operator.floordiv, 3), range(5), 2))


@pytest.mark.slow
def test_a_worker_that_is_ended_from_outside_is_one_line() -> None:
    with pytest.raises(UserError, match=r"ended from outside.*with fewer --workers"):
        list(in_parallel(os._exit, [1, 1, 1], 2))
