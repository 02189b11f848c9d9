"""Cut OpenAI's specification down to the routes that this server has.

    python tests/serving/openai_spec/cut.py openapi.yaml > tests/serving/openai_spec/spec.json

The file is from https://github.com/openai/openai-openapi. What only people read is left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

METHODS = {
    "/chat/completions": ("post",),
    "/completions": ("post",),
    "/models": ("get",),
    "/models/{model}": ("get",),
    "/responses": ("post",),
    "/responses/input_tokens": ("post",),
    "/responses/{response_id}": ("get", "delete"),
    "/responses/{response_id}/cancel": ("post",),
    "/responses/{response_id}/input_items": ("get",),
}
READ_BY_PEOPLE = ("description", "example", "examples", "title", "summary", "deprecated", "tags")
NAMED = ("properties", "schemas", "responses", "mapping", "content", "paths")


def strip(value: Any, has_names: bool = False) -> Any:
    """Without texts for people, and with `nullable`, which OpenAPI 3.1 does not have any more, in
    its words. has_names: the keys of this object are names, not keywords."""
    if isinstance(value, list):
        return [strip(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {
        key: strip(each, not has_names and key in NAMED)
        for key, each in value.items()
        if has_names or not (key in READ_BY_PEOPLE or key.startswith("x-"))
    }
    if not has_names and found.pop("nullable", None) is True:
        return {"anyOf": [found, {"type": "null"}]}
    return found


def references(value: Any) -> set[str]:
    """The names of all components that a part of the specification names."""
    if isinstance(value, str):
        return {value} if value.startswith("#/components/") else set()
    if not isinstance(value, dict | list):
        return set()
    parts = value if isinstance(value, list) else value.values()
    return {name for part in parts for name in references(part)}


def cut(whole: dict[str, Any]) -> dict[str, Any]:
    paths = strip(
        {
            path: {method: whole["paths"][path][method] for method in methods}
            for path, methods in METHODS.items()
        },
        has_names=True,
    )
    components: dict[str, dict[str, Any]] = {}
    waiting = references(paths)
    while waiting:
        _, _, kind, name = waiting.pop().split("/")
        if name not in components.setdefault(kind, {}):
            components[kind][name] = strip(whole["components"][kind][name])
            waiting |= references(components[kind][name])
    info = {name: whole["info"][name] for name in ("title", "version", "license")}
    ordered = {kind: dict(sorted(each.items())) for kind, each in sorted(components.items())}
    return {"openapi": whole["openapi"], "info": info, "paths": paths, "components": ordered}


def one_a_line(spec: dict[str, Any]) -> str:
    """JSON with a line for each route and each component, so that changes can be read."""
    tight = {"ensure_ascii": False, "separators": (",", ":")}

    def lines(named: dict[str, Any]) -> str:
        return ",\n".join(f"{json.dumps(k)}:{json.dumps(v, **tight)}" for k, v in named.items())

    kinds = ",\n".join(f"{json.dumps(k)}:{{\n{lines(v)}\n}}" for k, v in spec["components"].items())
    head = ",\n".join(f"{json.dumps(k)}:{json.dumps(spec[k])}" for k in ("openapi", "info"))
    return f'{{\n{head},\n"paths":{{\n{lines(spec["paths"])}\n}},\n"components":{{\n{kinds}\n}}\n}}'


if __name__ == "__main__":
    print(one_a_line(cut(yaml.safe_load(Path(sys.argv[1]).read_text("utf-8")))))
