from pathlib import Path

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("unbuilt_script.py")


def test_a_step_may_make_the_variables_that_it_trains(tmp_path):
    results, _ = results_of(4, tmp_path, SCRIPT)
    for name in ("of_layers", "nested", "of_a_module"):
        assert len({result[name]["digest"] for result in results.values()}) == 1, name
        assert results[0][name]["accuracy"] > 0.75, name
    for accuracy in results[0]["untrained"].values():
        assert accuracy < 0.3
    # Bit for bit as a model that was built before its first step.
    assert len({results[0][name]["digest"] for name in ("of_layers", "nested", "built")}) == 1
