"""/v1/responses and what is below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.models import as_json
from qwen25vl.serving.opening import open_early
from qwen25vl.serving.reading import client_seconds, read_body
from qwen25vl.serving.responses.opening import Asked, owner_of
from qwen25vl.serving.responses.output import Output
from qwen25vl.serving.responses.reply import Reply
from qwen25vl.serving.responses.stream import ResponseStream
from qwen25vl.serving.responses.translation import check
from qwen25vl.serving.responses.wire import ResponsesRequest
from qwen25vl.serving.sampling import refuse
from qwen25vl.serving.sse import EventStream, unless_gone

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

MAX_LISTED = 100


async def create_response(service: Service, request: Request) -> Any:
    body = await read_body(request, ResponsesRequest)
    check(body)
    service.find_adapter(body.model)
    asked = Asked.of(service, body, owner_of(service, request))
    if not body.stream:
        return await unless_gone(request, reply(service, asked, client_seconds(request)))
    opening = await open_early(asked.open(service, None))
    return EventStream(ResponseStream(service, asked, opening).parts())


async def reply(service: Service, asked: Asked, seconds: float | None) -> Response:
    """The whole response at once."""
    head = Reply(service, asked.body)
    output = Output(service.vlm.processor.tokenizer, asked.body.shows_logprobs)
    generation = await asked.open(service, seconds)
    async for event in generation.events():
        output.take(event)
    whole = head.finished(output, generation)
    asked.keep(service, whole)
    return as_json(whole)


async def count_input(service: Service, request: Request) -> Response:
    """POST /v1/responses/input_tokens"""
    body = await read_body(request, ResponsesRequest)
    check(body)
    asked = Asked.of(service, body, owner_of(service, request))
    inputs = await unless_gone(request, asked.read(service))
    count = int(inputs.input_ids.shape[-1])
    return as_json({"object": "response.input_tokens", "input_tokens": count})


async def show_response(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    stored = service.responses.get(name, owner_of(service, request))
    if request.query_params.get("stream", "").lower() in ("true", "1"):
        raise refuse("stream", "only responses in the background can be streamed again")
    return as_json(stored.reply)


async def delete_response(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    service.responses.delete(name, owner_of(service, request))
    return as_json({"id": name, "object": "response", "deleted": True})


async def cancel_response(service: Service, request: Request) -> Response:
    service.responses.get(request.path_params["name"], owner_of(service, request))
    raise ApiError(
        400,
        "Only responses in the background can be cancelled, and this server has none. Close the "
        "connection of a response to cancel it.",
        param="response_id",
    )


async def refuse_compacting(_service: Service, _: Request) -> Response:
    """POST /v1/responses/compact, which clients try: long conversations are shortened with
    `truncation` here."""
    message = 'Compaction is not supported by this server; use truncation: "auto".'
    raise ApiError(404, message, code="not_found")


async def list_items(service: Service, request: Request) -> Response:
    """GET /v1/responses/{name}/input_items: all that the response was an answer to, the latest
    first unless `order` says otherwise."""
    owner, given = owner_of(service, request), request.query_params
    stored = service.responses.get(request.path_params["name"], owner)
    limit, order = given.get("limit", "20"), given.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= MAX_LISTED):
        raise refuse("limit", f"{limit[:20]!r} is not a number from 1 to {MAX_LISTED}")
    if order not in ("asc", "desc"):
        raise refuse("order", f"{order[:20]!r} is neither 'asc' nor 'desc'")
    items = [
        item
        for each in service.responses.chain(stored.previous, owner)
        for item in (*each.items, *each.reply["output"])
    ]
    items += stored.items
    if order == "desc":
        items.reverse()
    if (after := given.get("after")) is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise refuse("after", f"{after[:80]!r} is the id of none of these items")
        items = items[places[0] + 1 :]
    shown = items[: int(limit)]
    return as_json(
        {
            "object": "list",
            "data": shown,
            "has_more": len(items) > len(shown),
            "first_id": shown[0]["id"] if shown else "",
            "last_id": shown[-1]["id"] if shown else "",
        }
    )
