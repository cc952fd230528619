import pytest

from tests.cluster import fake_mpi


@pytest.fixture(autouse=True)
def killed(monkeypatch):
    """Ranks are threads; returns what was killed of them."""
    return fake_mpi.install(monkeypatch)
