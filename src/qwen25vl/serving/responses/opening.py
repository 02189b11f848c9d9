"""From the body of a request to an answer that is being written."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from qwen25vl.serving.chat import open_chat
from qwen25vl.serving.errors import ApiError, renaming
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.guard import given_key
from qwen25vl.serving.prompts import read_chat
from qwen25vl.serving.responses.items import Item, Messages, read_input
from qwen25vl.serving.responses.store import Stored
from qwen25vl.serving.responses.translation import as_chat, read_history
from qwen25vl.serving.responses.wire import ResponsesRequest

if TYPE_CHECKING:
    from qwen25vl.inputs import ModelInputs
    from qwen25vl.serving.service import Service

OWN_NAMES = {"response_format.json_schema": "text.format", "response_format": "text.format"}


@dataclass
class Asked:
    """A request that is read. items: those of its own input; history: all messages. owner: whose
    API key it came with, "" where none is asked for."""

    body: ResponsesRequest
    items: list[Item]
    history: Messages
    owner: str

    @classmethod
    def of(cls, service: Service, body: ResponsesRequest, owner: str) -> Asked:
        """Raises ApiError for what is wrong with the items."""
        items = read_input(body.input)
        chain = service.responses.chain(body.previous_response_id, owner)
        return cls(body, items, read_history(body, chain, items), owner)

    def keep(self, service: Service, reply: dict[str, Any]) -> None:
        """Store a response that is over, unless the request says otherwise."""
        if self.body.is_stored:
            service.responses.put(Stored(reply, self.items, self.owner))

    async def open(self, service: Service, seconds: float | None) -> Generation:
        """Put the request into the queue. Errors name places of this request."""
        try:
            if self.body.truncation == "auto":
                self.history = await self.shorten(service)
            with renaming(OWN_NAMES):
                return await open_chat(service, as_chat(self.body, self.history.messages), seconds)
        except ApiError as error:
            error.param = self.history.rename(error.param)
            raise

    async def read(self, service: Service) -> ModelInputs:
        """The inputs of the model, without running it."""
        try:
            with renaming(OWN_NAMES):
                return await read_chat(service, as_chat(self.body, self.history.messages))
        except ApiError as error:
            error.param = self.history.rename(error.param)
            raise

    async def shorten(self, service: Service) -> Messages:
        """The conversation without as many of its oldest turns as it takes to leave room for the
        answer. Instructions and the last turn stay."""
        longest = service.max_model_len
        wanted = self.body.max_output_tokens or service.settings.default_max_tokens
        room = longest - min(wanted, longest // 4)
        fewest, most = 0, max(0, len(self.history.turns()) - 1)
        while fewest < most:  # the fewest turns that must go lie in [fewest, most]
            number = (fewest + most) // 2
            tried = as_chat(self.body, self.history.without(number).messages)
            inputs = await read_chat(service, tried)
            if int(inputs.input_ids.shape[-1]) <= room:
                most = number
            else:
                fewest = number + 1
        return self.history.without(fewest)


def owner_of(service: Service, request: Request) -> str:
    """Whose API key a request came with, as a digest; "" where the server asks for none."""
    if not service.settings.api_keys:
        return ""
    return sha256(given_key(dict(request.headers.raw))).hexdigest()
