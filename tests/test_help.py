"""--help of every script: options in groups with a title, each with what it does, and none that the script lacks."""

import argparse
import ast
import importlib.util
import sys

import pytest
from conftest import ROOT

SCRIPTS = [path.name for path in sorted(ROOT.glob("*.py"))] + ["data/fetch.py", "embeddings/fetch.py"]
UNGROUPED = {"-h", "--help", "--quiet", "--verbose"}


def load(path: str):
    """A script as a module of a name of its own: two are called fetch."""
    spec = importlib.util.spec_from_file_location("help_" + path.replace("/", "_").removesuffix(".py"), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS)
def test_help(path, capsys, monkeypatch):
    module = load(path)
    parsers = []
    parse_args = argparse.ArgumentParser.parse_args

    def spy(parser, *arguments):
        parsers.append(parser)
        return parse_args(parser, *arguments)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", spy)
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    with pytest.raises(SystemExit) as stop:
        module.parse_args()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ")
    (parser,) = parsers
    for action in parser._optionals._group_actions:
        assert set(action.option_strings) <= UNGROUPED, f"{action.option_strings} is in no group"
    titles = [group.title for group in parser._action_groups]
    assert len(set(titles)) == len(titles), titles
    for action in parser._actions:
        assert action.help, f"{action.option_strings or action.dest} has no help"
    # What main reads of the arguments is there.
    read = {
        node.attr
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    assert read <= {action.dest for action in parser._actions}
