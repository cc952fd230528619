"""Messages are lines on standard error, unless the user's own configuration of logging has them."""

import logging
import logging.config
import sys

import pytest
from absl import logging as absl_logging

from aggregathor import log

SAID = "aggregathor: rank 3 is 100% late\n"


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch, capsys):
    """Logging as in a process that has just begun."""
    for name in ("aggregathor", "aggregathor.cluster", "aggregathor.cluster.x"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", True)
        monkeypatch.setattr(logger, "level", logging.NOTSET)
        logger.setLevel(logging.NOTSET)  # forgets what it has cached
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    absls = absl_logging.get_absl_handler()
    monkeypatch.setattr(absls, "filters", [])
    monkeypatch.setattr(absls.python_handler, "stream", sys.stderr)
    yield
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()
    logging.getLogger("aggregathor").manager._clear_cache()


def say(level=logging.INFO, name="aggregathor.cluster.x"):
    logging.getLogger(name).log(level, "rank %d is %s late", 3, "100%")


def test_infos_are_lines(capsys):
    log.install()
    say()
    say(logging.DEBUG)
    assert capsys.readouterr() == ("", SAID)


def test_importing_the_package_configures_nothing(capsys):
    say()
    assert logging.getLogger("aggregathor").handlers == []
    assert capsys.readouterr() == ("", "")


def test_an_error_is_called_one(capsys):
    log.install()
    say(logging.ERROR)
    assert capsys.readouterr().err == "aggregathor: error: rank 3 is 100% late\n"


def test_twice_installed_it_is_one_line(capsys):
    log.install()
    log.install()
    say()
    assert capsys.readouterr().err == SAID


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["aggregathor", "aggregathor.cluster"])
def test_a_level_filters(name, when, capsys):
    if when == "after":
        log.install()
    logging.getLogger(name).setLevel(logging.ERROR)
    log.install()
    say(logging.WARNING)
    assert capsys.readouterr().err == ""
    say(logging.ERROR)
    assert "late" in capsys.readouterr().err


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2)])
def test_the_option_filters(level, shown, capsys):
    log.install()
    log.install(level)
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        say(each)
    assert len(capsys.readouterr().err.splitlines()) == shown


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["", "aggregathor", "aggregathor.cluster.x"])
def test_a_null_handler_silences(name, when, capsys):
    if when == "after":
        log.install()
    logging.getLogger(name).addHandler(logging.NullHandler())
    log.install()
    say(logging.ERROR)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("when", ["before", "after"])
def test_it_goes_to_a_file_alone(when, tmp_path, capsys):
    if when == "after":
        log.install()
    logging.basicConfig(
        filename=tmp_path / "log", format="%(levelname)s %(name)s %(message)s", level=logging.INFO
    )
    log.install()
    say()
    say(logging.WARNING)
    assert capsys.readouterr() == ("", "")
    lines = [f"{level} aggregathor.cluster.x rank 3 is 100% late" for level in ("INFO", "WARNING")]
    assert (tmp_path / "log").read_text().splitlines() == lines


def test_a_dict_configures(tmp_path, capsys):
    log.install()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"short": {"format": "%(message)s"}},
            "handlers": {
                "out": {
                    "class": "logging.StreamHandler",
                    "stream": sys.stdout,
                    "formatter": "short",
                }
            },
            "loggers": {"aggregathor": {"handlers": ["out"], "level": "WARNING"}},
        }
    )
    say()
    say(logging.WARNING)
    assert capsys.readouterr() == ("rank 3 is 100% late\n", "")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_basic_configuration_doubles_no_line(when, capsys):
    """Of its default form nobody knows whether the user or a library wanted it."""
    if when == "after":
        log.install()
    logging.basicConfig()
    log.install()
    say()
    logging.warning("of others")
    assert capsys.readouterr().err == f"{SAID}WARNING:root:of others\n"


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.ERROR])
def test_a_level_of_all_is_one_of_ours(level, capsys):
    logging.basicConfig(level=level)
    log.install()
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        say(each)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == sum(each >= level for each in (10, 20, 30, 40))
    assert all(line.startswith("aggregathor: ") for line in lines)


def test_a_form_of_the_users_own_is_used(capsys):
    log.install()
    logging.basicConfig(format="mine: %(message)s")
    say()
    assert capsys.readouterr().err == "mine: rank 3 is 100% late\n"


@pytest.mark.parametrize("when", ["before", "after"])
def test_absls_handler_changes_no_line(when, capsys):
    if when == "after":
        log.install()
    logging.root.addHandler(absl_logging.get_absl_handler())  # as absl.app.run does
    log.install()
    say()
    assert capsys.readouterr().err == SAID
    logging.warning("of others")
    assert capsys.readouterr().err.endswith("] of others\n")


def test_absls_handler_can_be_chosen(capsys):
    log.install()
    logging.getLogger("aggregathor").addHandler(absl_logging.get_absl_handler())
    say()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("] rank 3 is 100% late")
    assert not line.startswith("aggregathor")


def test_what_ends_a_process_is_told_whoever_logs(capsys):
    log.install()
    logging.root.addHandler(logging.NullHandler())
    log.tell_error("no rule is called x")
    assert capsys.readouterr().err == "aggregathor: error: no rule is called x\n"


def test_a_message_takes_away_the_line_that_is_shown(capsys):
    log.install()
    log.show("aggregathor.monitor", "12")
    log.show("aggregathor.monitor", "1")
    say()
    width = len("aggregathor: ")
    over = [f"\r{' ' * (width + columns)}\r" for columns in (2, 1)]
    assert capsys.readouterr().err == f"aggregathor: 12{over[0]}aggregathor: 1{over[1]}{SAID}"


def test_no_line_is_shown_where_infos_are_not(capsys):
    log.install("warning")
    log.show("aggregathor.monitor", "12")
    assert capsys.readouterr().err == ""


def test_a_status_is_in_place_on_a_terminal_that_lines_go_to(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log.install()
    assert log.shows_in_place("aggregathor.monitor")
    logging.getLogger("aggregathor").addHandler(logging.NullHandler())
    assert not log.shows_in_place("aggregathor.monitor")
