import pytest
from local_slurm import MISSING, LocalSlurm, installed


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/slurm/" in str(item.path) and not installed():
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of two cores and two pretended GPUs each, for the tests of one file."""
    with LocalSlurm(tmp_path_factory.mktemp("slurm"), nodes=2, cpus=2, gpus=2) as local:
        yield local
