#!/usr/bin/env python3
"""Parses the scripts of this folder, and compares every call of their functions with the functions' parameters.

There is no PowerShell where this project is built; this finds what a parser can find:

    python3 -m venv /tmp/lab-check && /tmp/lab-check/bin/pip install tree-sitter tree-sitter-powershell
    /tmp/lab-check/bin/python lab/check.py

The grammar knows size suffixes (8gb) in small letters only and no empty script block, so the scripts have neither.
"""

import pathlib
import sys

import tree_sitter_powershell
from tree_sitter import Language, Parser


def nodes(node):
    yield node
    for child in node.children:
        yield from nodes(child)


def parameters(function):
    """Names of a function's parameters, in small letters, as PowerShell compares them."""
    block = next((node for node in nodes(function) if node.type == "param_block"), None)
    found = [node for node in nodes(block) if node.type == "script_parameter"] if block else []
    names = [next(child for child in node.children if child.type == "variable") for node in found]
    return {name.text.decode().lstrip("$").lower() for name in names}


def calls(tree):
    """Line, name and named parameters of every command."""
    for node in nodes(tree):
        name = next((child for child in node.children if child.type == "command_name"), None)
        if node.type != "command" or name is None:
            continue
        elements = [part for child in node.children if child.type == "command_elements" for part in child.children]
        given = [part.text.decode().strip("-:").lower() for part in elements if part.type == "command_parameter"]
        yield node.start_point[0] + 1, name.text.decode().lower(), given


def main():
    parser = Parser(Language(tree_sitter_powershell.language()))
    folder = pathlib.Path(__file__).parent
    trees = {path.name: parser.parse(path.read_bytes()).root_node for path in sorted(folder.glob("*.ps1"))}
    problems = []
    functions = {}
    for file, tree in trees.items():
        for node in nodes(tree):
            if node.type == "ERROR" or node.is_missing:
                problems.append(f"{file}:{node.start_point[0] + 1}: does not parse: {node.text.decode()[:60]!r}")
            if node.type == "function_statement":
                name = next(child for child in node.children if child.type == "function_name").text.decode().lower()
                functions[name] = parameters(node)
    used = set()
    for file, tree in trees.items():
        for line, name, given in calls(tree):
            used.add(name)
            unknown = [one for one in given if name in functions and one not in functions[name]]
            problems += [f"{file}:{line}: {name} has no parameter {one}" for one in unknown]
    problems += [f"{name} is called nowhere" for name in functions if name not in used]
    print("\n".join(problems) or f"{len(trees)} scripts, {len(functions)} functions: no problem found")
    return 1 if problems else 0


sys.exit(main())
