import pytest

from aggregathor.errors import UserError
from aggregathor.protocols.checks import check_training, check_transport, doubts
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.settings import Training


def test_what_each_protocol_needs_of_n_workers():
    largest = {name: PROTOCOLS[name].largest_f(10) for name in PROTOCOLS}
    assert {name: largest[name] for name in ("sync", "async", "basgd", "zeno++", "kardam")} == {
        "sync": 9, "async": 9, "basgd": 4, "zeno++": 9, "kardam": 3,
    }  # fmt: skip
    assert [name for name in PROTOCOLS if PROTOCOLS[name].takes] == [
        "async", "basgd", "zeno++", "kardam",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "rows"), [({}, 5), ({"buffers": 3}, 3), ({"reassign_s": 1.0}, 5)]
)
def test_the_rule_of_basgd_gets_as_many_rows_as_there_are_buffers(given, rows):
    assert PROTOCOLS["basgd"].rows(n=20, f=2, **given) == rows
    checked = []
    training = Training(protocol="basgd", gar="median", f=2, protocol_args=given)
    check_training(training, 20, lambda n, f: checked.append((n, f)))
    assert checked == [(rows, 2)]
    assert PROTOCOLS["sync"].rows(n=20, f=2) == 20


@pytest.mark.parametrize("protocol", ["async", "zeno++", "kardam"])
def test_a_rule_that_would_not_be_used_is_refused(protocol):
    for given in ({"gar": "krum"}, {"gar_args": {"unsafe": True}}):
        training = Training(protocol=protocol, **given)
        with pytest.raises(UserError, match="decides what is applied, not a rule: leave gar"):
            check_training(training, 20, lambda n, f: None)


def test_doubts_are_of_the_protocol_where_it_has_no_rule():
    [doubt] = doubts(Training(protocol="async", f=2, byzantine=2), robust=True)
    assert doubt.startswith("f=2 is declared, and async tolerates no Byzantine worker: choose ")
    assert "another --protocol" in doubt
    [doubt] = doubts(Training(protocol="kardam", f=1, byzantine=2), robust=False)
    assert doubt == "2 workers attack, and kardam expects at most f=1"
    assert doubts(Training(protocol="zeno++", f=8, byzantine=8), robust=False) == []


@pytest.mark.parametrize("protocol", ["async", "basgd", "zeno++", "kardam"])
@pytest.mark.parametrize("fill", ["nan", "random"])
def test_a_fill_that_would_stay_in_the_model_is_refused_where_udp_loses(protocol, fill):
    with pytest.raises(UserError, match=f"cannot be {fill}: .* Take --fill=zero, or previous"):
        check_transport(Training(protocol=protocol, fill=fill), "udp")
    check_transport(Training(protocol="sync", fill=fill), "udp")
    for transport in ("mpi", "shm", "auto", ""):
        check_transport(Training(protocol=protocol, fill=fill), transport)
    for filled in ("zero", "previous"):
        check_transport(Training(protocol=protocol, fill=filled), "udp")
