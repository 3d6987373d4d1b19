import pytest
from suite_runs import save_prompter


@pytest.fixture(scope="session")
def saved_prompter(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six pictures a window."""
    return save_prompter(tmp_path_factory.mktemp("prompter"))
