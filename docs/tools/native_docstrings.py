"""Joins the two halves of the native module's documentation.

The stub ``_core.pyi`` has the types, and is what is parsed. The docstrings are written in Rust:
they are taken from the built module.
"""

from __future__ import annotations

import inspect

import griffe

from moshi_rs import _core


class NativeDocstrings(griffe.Extension):
    """Gives every object of ``moshi_rs._core`` the docstring that it has at run time."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: object) -> None:
        """Fills in the docstrings once the package is parsed."""
        if pkg.path == "moshi_rs":
            _describe(pkg["_core"], _core, loader)


def _describe(stub: griffe.Object, native: object, loader: griffe.GriffeLoader) -> None:
    for name, member in stub.members.items():
        value = getattr(native, name, None)
        if member.is_alias or value is None or isinstance(value, str):
            continue
        member.docstring = griffe.Docstring(
            inspect.getdoc(value) or "",
            parent=member,
            parser=loader.docstring_parser,
            parser_options=loader.docstring_options,
        )
        if member.is_class:
            _describe(member, value, loader)
