"""The command that times the parts of a step, on a small network for a moment."""

from experiments import draco_times


def test_the_parts_of_each_methods_step_are_timed(tmp_path, capsys):
    flags = ["--workers=4", "--redundancies", "3", "--model=digits-mlp", "--batch_size=2"]
    assert draco_times.main([*flags, "--turns=1", f"--output={tmp_path}"]) == 0
    told = capsys.readouterr().out
    (path,) = tmp_path.glob("draco_times_*.md")
    assert path.read_text() == told
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()]
    figures = {cells[0]: cells[1:] for cells in rows if len(cells) == 7 and "ms" not in cells[1]}
    del figures["---"]
    assert list(figures) == [
        "plain SGD",
        *(f"geometric-median, s=1, {errors} wrong" for errors in (0, 1)),
        *(f"repetition, r=3, n=3, {errors} wrong" for errors in (0, 1)),
        *(f"cyclic, r=3, {errors} wrong" for errors in (0, 1)),
    ]
    for numbers in figures.values():
        assert all(float(number) >= 0 for number in numbers)
    assert "goal" not in told  # those are of 15 workers
