"""What every attack must do."""

import dataclasses
import doctest
import inspect

import numpy as np
import pytest

from aggregathor import attacks
from aggregathor.attacks import ATTACKS
from aggregathor.errors import UserError

RANDOM = {"bit-flip", "gambler", "gaussian", "random-disturbance"}
PARAMETERS = {"gambler": {"probability": 0.1}}  # the default hits nothing in a small stack
CASES = [(name, {}) for name in ATTACKS] + [
    ("mimic", {"follow": "direction"}),
    ("hidden-coordinate", {"norm": "inf"}),
    ("min-max", {"direction": "unit"}),
    ("min-max", {"direction": "sign"}),
    ("min-sum", {"direction": "unit"}),
    ("min-sum", {"direction": "sign"}),
]
each_case = pytest.mark.parametrize(("name", "parameters"), CASES)
each_attack = pytest.mark.parametrize("name", ATTACKS)


def num_rows(name, view):
    return view.n if ATTACKS[name].form == "coordinates" else view.num_byzantine


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("b", [0, 1, 3])
@each_case
def test_shape_and_dtype(name, parameters, b, dtype, make_view):
    view = make_view(b=b, dtype=dtype)
    rows = ATTACKS[name](view, **parameters)
    assert rows.shape == (num_rows(name, view), 50)
    assert rows.dtype == dtype


@each_case
def test_result_shares_no_memory_with_the_inputs(name, parameters, make_view):
    view = make_view()
    rows = ATTACKS[name](view, **parameters)
    assert not np.may_share_memory(rows, view.honest_hd)
    assert not np.may_share_memory(rows, view.own_bd)
    assert rows.flags.writeable


@each_case
def test_inputs_stay_as_they_were(name, parameters, make_view):
    view, copy = make_view(), make_view()
    ATTACKS[name](view, **parameters)  # the arrays are read-only, so a write would raise
    np.testing.assert_array_equal(view.honest_hd, copy.honest_hd)
    np.testing.assert_array_equal(view.own_bd, copy.own_bd)


@each_attack
def test_only_the_seed_decides(name, make_view):
    run = [ATTACKS[name](make_view(seed=s), **PARAMETERS.get(name, {})) for s in (0, 0, 1)]
    np.testing.assert_array_equal(run[0], run[1])
    assert np.array_equal(run[0], run[2], equal_nan=True) == (name not in RANDOM)


@pytest.mark.parametrize("name", [n for n, a in ATTACKS.items() if a.form in ("local", "labels")])
def test_local_attacks_do_not_see_honest_rows(name, make_view):
    view, other = make_view(), make_view()
    other = dataclasses.replace(other, honest_hd=other.honest_hd + 1)
    np.testing.assert_array_equal(ATTACKS[name](view), ATTACKS[name](other))


@pytest.mark.parametrize("name", [n for n, a in ATTACKS.items() if a.form == "omniscient"])
def test_byzantine_rows_of_omniscient_attacks_are_identical(name, make_view):
    rows = ATTACKS[name](make_view(b=3))
    np.testing.assert_array_equal(rows, rows[[0, 0, 0]])


@each_attack
def test_stack_has_honest_rows_first(name, make_view):
    view = make_view(h=8, b=3)
    stack_nd = attacks.apply(ATTACKS[name], view)
    again = ATTACKS[name](make_view(h=8, b=3))
    assert stack_nd.shape == (11, 50)
    if ATTACKS[name].form == "coordinates":
        np.testing.assert_array_equal(stack_nd, again)
    else:
        np.testing.assert_array_equal(stack_nd[:8], view.honest_hd)
        np.testing.assert_array_equal(stack_nd[8:], again)


@each_attack
def test_named_function_is_the_attack(name, make_view):
    function = getattr(attacks, name.replace("-", "_"))
    np.testing.assert_array_equal(function(make_view()), ATTACKS[name](make_view()))
    assert dict(ATTACKS[name].parameters) == {
        p.name: p.default for p in list(inspect.signature(function).parameters.values())[1:]
    }
    assert all(part in function.__doc__ for part in (".. math::", "Args:", "Source:"))
    assert set(attacks.__all__) >= {function.__name__}


def test_registry_has_every_attack():
    public = {name.replace("_", "-") for name in attacks.__all__}
    assert set(ATTACKS) == public - {"ATTACKS", "Attack", "View", "apply"}
    assert len(ATTACKS) == 20
    with pytest.raises(UserError, match="no attack is called 'littel': did you mean 'little'"):
        ATTACKS["littel"]


@each_attack
def test_defaults_pass_the_check(name):
    ATTACKS[name].check()
    ATTACKS[name].check(**ATTACKS[name].parameters)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("gaussian", {"sdt": 1.0}, r"no parameter 'sdt': did you mean 'std'\?"),
        ("zero", {"value": 1.0}, r"no parameter 'value': it takes none\."),
        ("gaussian", {"std": -1.0}, r"gaussian needs std >= 0; got std=-1\.0\."),
        ("gaussian", {"std": "big"}, r"needs a finite number as 'std'; got 'big' \(default 200"),
        ("gaussian", {"std": float("nan")}, "needs a finite number"),
        ("constant", {"kappa": 10**400}, "needs a finite number"),
        ("gaussian", {"std": True}, "needs a finite number"),
        ("gaussian", {"std": None}, "needs a finite number"),
        ("omniscient", {"scale": -1}, "scale >= 0"),
        ("reversed", {"c": -1}, "c >= 0"),
        ("inner-product", {"epsilon": -0.1}, "epsilon >= 0"),
        ("negative-gradient", {"k": -1}, "k >= 0"),
        ("random-disturbance", {"std": -1}, "std >= 0"),
        ("little", {"z": "one"}, "needs a finite number as 'z'"),
        ("bit-flip", {"coordinates": -1}, "coordinates >= 0"),
        ("bit-flip", {"coordinates": 1.5}, "needs an integer as 'coordinates'"),
        ("gambler", {"probability": 1.5}, "0 <= probability <= 1; got .*probability=1.5"),
        ("gambler", {"servers": 0}, "servers >= 1"),
        ("gambler", {"server": 20}, "0 <= server < servers; got servers=20, server=20"),
        ("inf", {"sign": 0}, "sign = 1 or sign = -1"),
        ("mimic", {"follow": "rows"}, 'follow = "row" or follow = "direction"'),
        ("mimic", {"follow": 1}, "needs a string as 'follow'"),
        ("mimic", {"row": -1}, "row >= 0"),
        ("hidden-coordinate", {"norm": "1"}, 'norm = "2" or norm = "inf"'),
        ("hidden-coordinate", {"coordinate": -1}, "coordinate >= 0"),
        ("hidden-coordinate", {"gamma_max": 0}, "gamma_max > 0"),
        ("min-max", {"direction": "up"}, 'direction = "std", "unit" or "sign"'),
        ("min-sum", {"direction": "up"}, 'direction = "std", "unit" or "sign"'),
    ],
)
def test_bad_parameters_are_named_before_anything_runs(name, parameters, message, make_view):
    with pytest.raises(UserError, match=message):
        ATTACKS[name].check(**parameters)
    with pytest.raises(UserError, match=message):
        getattr(attacks, name.replace("-", "_"))(make_view(), **parameters)


def test_numpy_scalars_are_numbers():
    ATTACKS["gaussian"].check(std=np.float32(1))
    ATTACKS["bit-flip"].check(coordinates=np.int64(1))


def test_wrong_result_is_caught(make_view):
    short = dataclasses.replace(ATTACKS["zero"], function=lambda view: np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"must return float64 \[3, 50\]; .* float64 \[1, 2\]"):
        short(make_view(b=3))


@pytest.mark.parametrize(
    ("honest_hd", "own_bd"),
    [
        (np.zeros((0, 2)), np.zeros((1, 2))),
        (np.zeros((3, 2)), np.zeros((1, 3))),
        (np.zeros((3, 2)), np.zeros(2)),
        (np.zeros((3, 2)), np.zeros((1, 2), np.float32)),
        (np.zeros((3, 2), int), np.zeros((1, 2), int)),
    ],
)
def test_view_refuses_rows_that_do_not_fit(honest_hd, own_bd):
    with pytest.raises(ValueError, match="a view needs"):
        attacks.View(honest_hd, own_bd, f=1, rng=np.random.default_rng(0))


def test_package_example():
    assert doctest.testmod(attacks).failed == 0
