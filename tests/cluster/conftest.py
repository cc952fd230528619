import pytest

from tests.cluster import fake_mpi


@pytest.fixture(autouse=True)
def no_real_mpi(monkeypatch):
    """Ranks are threads: what asks for MPI's module gets the fake one."""
    monkeypatch.setattr("lossympi.mpi.import_mpi", lambda: fake_mpi.MPI)
    monkeypatch.setattr(fake_mpi.MPI, "finalized", 0)


@pytest.fixture(autouse=True)
def nobody_is_killed(monkeypatch):
    """All ranks are one process, which must outlive them."""
    killed = []
    monkeypatch.setattr("aggregathor.cluster.ranks.os.kill", lambda *args: killed.append(args))
    return killed
