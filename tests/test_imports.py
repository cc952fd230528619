"""No module imports one that imports it, through others either; `make lint` has the contracts."""

import graphlib

import grimp
import pytest

PACKAGES = ("aggregathor", "experiments", "lossympi")


def import_graph():
    # What is imported for annotations alone is not imported when a program runs.
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def check(graph):
    imported = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    graphlib.TopologicalSorter(imported).prepare()


def test_there_is_no_import_circle():
    check(import_graph())


def test_a_circle_would_be_found():
    graph = import_graph()
    graph.add_import(importer="aggregathor.errors", imported="aggregathor.api")
    with pytest.raises(graphlib.CycleError):
        check(graph)
