"""A hundred schemas over HTTP: what is finished is valid, as another implementation says."""

import json

import pytest
from jsonschema import Draft202012Validator
from structured.schemas import SCHEMAS, modern


@pytest.mark.slow
def test_finished_answers_are_valid(live):
    """A schema that is refused, or a grammar that lets a wrong token pass, shows here."""
    finished = 0
    for number, schema in enumerate(SCHEMAS):
        answer = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        asked = {"max_tokens": 600, "temperature": 1.0, "seed": number, "response_format": answer}
        reply = live.ask("Fill in the form.", **asked)
        assert reply.status_code == 200, (schema, reply.text)
        choice = reply.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            finished += 1
            value = json.loads(choice["message"]["content"])
            Draft202012Validator(modern(schema)).validate(value)
    assert finished > 0.9 * len(SCHEMAS)
    print(f"{finished} of {len(SCHEMAS)} finished")
