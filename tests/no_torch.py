"""``pytest -p tests.no_torch``: a test that would load torch is skipped when it tries. What ``make test-fast`` runs.

Nothing has to be marked: the rule is what a test really imports. Processes that a test starts may load what they like.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

REASON = "loads torch: make test runs it"


class NoTorch(MetaPathFinder):
    """Comes before all other finders and refuses torch.

    Attributes:
        asked: whether somebody tried since the last report.
        causes: what fixtures failed with for that reason; pytest raises it again in each test that wants the fixture.
    """

    def __init__(self) -> None:
        self.asked = False
        self.causes: list[BaseException] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Skips a module or test that imports torch, also where a thread or a command catches that."""
        if name == "torch":
            self.asked = True
            pytest.skip(REASON, allow_module_level=True)
        return None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
        report: pytest.TestReport = yield
        cause = call.excinfo.value if call.excinfo else None
        if cause is not None and (self.asked or cause in self.causes):
            self.causes.append(cause)
            report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1] or 0, REASON)
        self.asked = False
        return report


def pytest_configure(config: pytest.Config) -> None:
    assert "torch" not in sys.modules, "torch was imported before any test"
    finder = NoTorch()
    sys.meta_path.insert(0, finder)
    config.pluginmanager.register(finder, "no-torch")
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnhandledThreadExceptionWarning")
