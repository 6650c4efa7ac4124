"""What an author sees: the names of `mesh`, and the tree of errors as its docstring draws it."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import mesh
from mesh import errors

TREE_LINE = re.compile(r"^ {4}(?P<branch>[│├└ ]*)(?P<name>[A-Z]\w+)")


def test_exported_names_are_sorted_and_each_once() -> None:
    assert mesh.__all__ == sorted(set(mesh.__all__))


def test_exported_names_are_the_names_that_can_be_had() -> None:
    assert dir(mesh) == mesh.__all__
    assert {name: getattr(mesh, name).__name__ for name in mesh.__all__} == {name: name for name in mesh.__all__}


def test_exported_names_are_those_that_a_type_checker_sees() -> None:
    tree = ast.parse(Path(mesh.__file__).read_text())

    seen = [
        (alias.asname or alias.name, node.module)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]

    assert sorted(name for name, _ in seen) == mesh.__all__
    for name, home in seen:
        assert home is not None
        assert getattr(importlib.import_module(home), name) is getattr(mesh, name)


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mesh' has no attribute 'Nonsense'"):
        _ = mesh.Nonsense


def drawn(docstring: str) -> dict[str, str]:
    """Each error of a drawn tree with the one it stands below."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in docstring.splitlines():
        if (found := TREE_LINE.match(line)) is not None:
            depth = len(found["branch"]) // 2
            above = [*above[:depth], found["name"]]
            if depth:
                parents[found["name"]] = above[depth - 1]
    return parents


def test_the_tree_of_errors_is_as_it_is_drawn() -> None:
    real = {
        name: getattr(errors, name).__bases__[0].__name__
        for name in errors.__all__
        if name != errors.MeshError.__name__
    }

    assert drawn(errors.__doc__ or "") == real


def test_every_error_of_the_module_is_exported() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MeshError) and not name.startswith("_")
    }

    assert sorted(defined) == errors.__all__


def test_every_error_says_what_it_means() -> None:
    assert [name for name in errors.__all__ if not getattr(errors, name).__doc__] == []
