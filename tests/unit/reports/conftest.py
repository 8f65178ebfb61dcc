"""The tests of reports draw the real figures; others have a stand-in."""

import pytest


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import DRAW_RUN  # which the process that starts the workers does not have

    monkeypatch.setattr("hf_sft.reports.plots.draw_run", DRAW_RUN)
