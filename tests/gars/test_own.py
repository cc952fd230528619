"""Rules and attacks of one's own by name, "module:function", wherever a name is taken."""

import sys

import numpy as np
import pytest

from aggregathor import compositions, gars
from aggregathor.attacks import ATTACKS, View
from aggregathor.cli import main as cli
from aggregathor.cli.try_rule import main as contract
from aggregathor.cluster.config import Config
from aggregathor.errors import UserError
from aggregathor.gars.base import registered
from aggregathor.protocols.setting import Setting

MINE = """
import numpy as np
from aggregathor import gars

def middle(stack_nd, *, f, power=1):
    return np.median(np.asarray(stack_nd), axis=0) ** power

@gars.gar("strict-middle", condition="n >= 3f + 1", cost="O(nd)", source="a test")
def strict(stack_nd, *, f):
    return gars.Aggregated(np.median(np.asarray(stack_nd), axis=0), np.ones(stack_nd.shape[0]))

def shout(view, *, factor=10.0):
    row_d = factor * view.honest_hd.mean(0, keepdims=True)
    return np.repeat(row_d, view.num_byzantine, 0).astype(view.honest_hd.dtype)

number = 5

def wrong(a, b):
    pass
"""
STACK = np.arange(15, dtype=np.float32).reshape(5, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "needs.py").write_text("import nothere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(registered)
    attacks = dict(ATTACKS._values)
    yield tmp_path
    sys.modules.pop("mine", None)
    for known, old in ((registered, before), (ATTACKS._values, attacks)):
        known.clear()
        known.update(old)
    for name in [each for each in compositions._declared if ":" in each or "strict" in each]:
        del compositions._declared[name]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mine:middle", [6, 7, 8]),
        ("mine:middle(power=2)", [36, 49, 64]),
        ("nnm+mine:middle", [4.5, 5.5, 6.5]),
        ("mine:strict", [6, 7, 8]),
    ],
)
def test_a_rule_of_a_module(text, wanted):
    compositions.check(text, {})  # from its source alone
    assert "mine" not in sys.modules
    rule = gars.compose(text)
    assert rule(STACK, f=1).numpy().tolist() == wanted
    assert rule.name.endswith(text)
    compositions.check(text, {})
    assert gars.compose(text)(STACK, f=1).numpy().tolist() == wanted


def test_its_condition_is_its_decorators_or_that_of_any():
    assert gars.compose("mine:middle").condition == "n >= 2f + 1"
    assert gars.compose("mine:strict").condition == "n >= 3f + 1"
    compositions.check_workers("mine:strict", {}, 4, 1)
    with pytest.raises(UserError, match="f=1 needs 4, got 3"):
        compositions.check_workers("mine:strict", {}, 3, 1)
    with pytest.raises(UserError, match="f=1 needs 3, got 2"):
        compositions.check_workers("mine:middle", {}, 2, 1)


def test_an_attack_of_a_module():
    view = View(STACK[:4], STACK[4:], 1, np.random.default_rng(0))
    attack = ATTACKS["mine:shout"]
    assert attack(view, factor=2.0).tolist() == [[9, 11, 13]]
    assert ATTACKS["mine:shout"] is attack
    with pytest.raises(UserError, match="no parameter 'facotr': did you mean 'factor'"):
        attack.check(facotr=1.0)


def test_wherever_a_name_is_taken(capsys):
    given = {"gar": "mine:middle", "gar_args": {"power": 2}, "f": 1}
    Config.of(given, {})
    Config.of({}, {"AGGREGATHOR_GAR": "nnm+mine:middle"})
    Setting(num_workers=5, byzantine=1, attack="mine:shout", **given).check()
    assert cli.main(["advise", "--n=5", "--f=1", "--gar=mine:middle"]) == 0
    assert "mine:middle" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mien:middle", "the rule mien:middle: there is no module 'mien'"),
        ("mine:midle", "mine has no 'midle': did you mean 'middle'"),
        ("mine:", "a rule of your own is named as module:function, got 'mine:'"),
        (":middle", "named as module:function"),
        ("mine:middle(pwoer=2)", "no parameter 'pwoer': did you mean 'power'"),
        ("mine:middle+krum", "mine:middle is a rule, and a rule comes last"),
    ],
)
def test_mistakes_are_named_before_and_in_the_ranks(text, told):
    for refuses in (lambda: compositions.check(text, {}), lambda: gars.compose(text)):
        with pytest.raises(UserError) as error:
            refuses()
        assert told in str(error.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mine:number", "is no function, but int"),
        ("mine:wrong", "this one takes (a, b)"),
        ("mine:nothere", "has no 'nothere'"),
        ("nothere:x", "there is no module 'nothere'"),
    ],
)
def test_what_is_neither_rule_nor_attack(name, told):
    for refuses in (lambda: gars.compose(name), lambda: ATTACKS[name]):
        with pytest.raises(UserError) as error:
            refuses()
        assert told in str(error.value)


def test_an_error_of_the_module_itself_is_its_own():
    with pytest.raises(ModuleNotFoundError, match="nothere_at_all"):
        gars.compose("needs:x")


@pytest.mark.parametrize(("rule", "status"), [("mine:middle", 0), ("mine:mean", 1), ("mine:no", 2)])
def test_it_is_tried_against_the_contract(rule, status, folder, capsys):
    (folder / "mine.py").write_text(
        "import numpy as np\nfrom aggregathor import gars\n"
        "def middle(stack_nd, *, f):\n"
        "    return gars.median(stack_nd, f=f)\n"
        "def mean(stack_nd, *, f):\n    return np.mean(np.asarray(stack_nd), axis=0)\n"
    )
    assert contract([rule]) == status
    out, err = capsys.readouterr()
    if status == 0:
        assert err == "" or "aggregathor" not in err
        assert out.startswith("mine:middle keeps the ")
    else:
        assert ("mine:mean breaks" if status == 1 else "mine has no 'no'") in err
