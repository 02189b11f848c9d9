"""/openapi.json says what is done, and what is done keeps to it."""

import jsonschema
import pytest

from qwen25vl.serving.wire import ChatRequest


@pytest.fixture(scope="module")
def described(live):
    return live.http.get("/openapi.json").json()


def schema_of(described, name):
    return {"$ref": f"#/components/schemas/{name}", "components": described["components"]}


def test_every_route_is_described(live, described):
    """A list that is written by hand forgets the next route."""
    routes = {
        (route.path.replace(":path}", "}"), method)
        for route in live.server.config.app.app.routes
        for method in route.methods - {"HEAD"}
        if route.path != "/" and not route.path.startswith("/page/")
    }
    operations = described["paths"].items()
    assert {(path, each.upper()) for path, known in operations for each in known} == routes


def test_every_post_of_the_apis_has_its_fields(described):
    for path, operations in described["paths"].items():
        if "post" in operations and not path.endswith(("/cancel", "/compact")):
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            name = schema["$ref"].rpartition("/")[2]
            assert described["components"]["schemas"][name]["properties"]
    fields = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert set(fields) == set(ChatRequest.model_fields)


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/chat/completions", "Error"), ("/v1/responses", "Error"), ("/tokenize", "Error"),
     ("/v1/messages", "AnthropicError"), ("/api/chat", "OllamaError"), ("/nowhere", "Error")],
)  # fmt: skip
def test_errors_have_the_described_shape(live, described, path, name):
    reply = live.http.post(path, content="{")
    assert reply.status_code in (400, 404)
    jsonschema.Draft202012Validator(schema_of(described, name)).validate(reply.json())


def test_the_schemas_are_schemas(described):
    for name in described["components"]["schemas"]:
        jsonschema.Draft202012Validator.check_schema(schema_of(described, name))
