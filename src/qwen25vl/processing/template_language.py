"""The language of chat templates: Jinja, sandboxed, with what the ecosystem gives to a template."""

from __future__ import annotations

import json
from functools import lru_cache, partial

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen25vl.config_values import in_one_line
from qwen25vl.errors import CheckpointError, MessageError


@lru_cache(maxsize=8)
def compile_template(template: str) -> tuple[Template, frozenset[str]]:
    """A chat template, with what the ecosystem gives to one,
    and the names of the variables that it reads."""

    def raise_exception(message: str) -> None:
        raise MessageError(f"the chat template refuses these messages: {message}")

    extensions = ["jinja2.ext.loopcontrols", GenerationBlock]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    try:
        names = meta.find_undeclared_variables(environment.parse(template))
        return environment.from_string(template), frozenset(names)
    except (TemplateError, RecursionError, SyntaxError, ValueError) as error:
        raise CheckpointError(f"the chat template cannot be read: {in_one_line(error)}") from None


class GenerationBlock(Extension):
    """{% generation %} … {% endgeneration %} marks the assistant's words for training;
    here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - the shape that jinja2 wants

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(
            parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line
        )
