"""Every family by every method: a step is the same however it is cut, and two processes end in the weights of one.

    python -m pytest -p no:xdist tests/benchmarks/families.py

About four minutes on two cores; a telling part of it is in the tests.
"""

from pathlib import Path

import pytest

from tests.test_families import FAMILIES, METHODS, alike_by_two_processes, asked, build, step_however_cut


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    return {family: build(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_same_however_it_is_cut(family, method, built, tmp_path):
    step_however_cut(asked(built[family], tmp_path, method))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_end_in_the_weights_of_one(family, built, tmp_path):
    alike_by_two_processes({method.replace(":", "_"): asked(built[family], tmp_path, method) for method in METHODS}, tmp_path)
