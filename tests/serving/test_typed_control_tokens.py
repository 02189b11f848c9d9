"""What a person types stays text, wherever in a request it stands."""

import json
from typing import Any

import pytest
from live_server import NAME, Live, data_url, scene

PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
CALL = {"name": "f", "arguments": "{}"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}], **fields}


def says(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    first = [] if role == "user" else [{"role": "user", "content": "Hi"}]
    last = [] if role == "user" else [{"role": "user", "content": "And?"}]
    return {"messages": [*first, {"role": role, "content": content, **fields}, *last]}


def tool(**changed: Any) -> dict[str, Any]:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, **changed}
    return {"type": "function", "function": function}


def calls(**changed: Any) -> dict[str, Any]:
    made = [{"id": "call_1", "type": "function", "function": {**CALL, **changed}}]
    return says("assistant", None, tool_calls=made)


PLACES = {
    "user": lambda text: says("user", text),
    "user in parts": lambda text: says("user", [{"type": "text", "text": text}] * 2),
    "split over parts": lambda text: says(
        "user", [{"type": "text", "text": half} for half in (text[:3], text[3:])]
    ),
    "system": lambda text: {
        "messages": [{"role": "system", "content": text}, {"role": "user", "content": "Hi"}]
    },
    "developer": lambda text: {
        "messages": [{"role": "developer", "content": text}, {"role": "user", "content": "Hi"}]
    },
    "assistant": lambda text: says("assistant", text),
    "refusal": lambda text: says("assistant", None, refusal=text),
    "tool": lambda text: says("tool", text, tool_call_id="call_1"),
    "tool call id": lambda text: says("tool", "r", tool_call_id=text),
    "name": lambda text: says("user", "Hi", name=text),
    "call name": lambda text: calls(name=text),
    "call arguments": lambda text: calls(arguments=json.dumps({"x": text})),
    "tool name": lambda text: chat(tools=[tool(name=text)]),
    "tool description": lambda text: chat(tools=[tool(description=text)]),
    "tool parameters": lambda text: chat(
        tools=[tool(parameters={"type": "object", "properties": {text: {"enum": [text]}}})]
    ),
    "stop": lambda text: chat(stop=[text]),
    "metadata": lambda text: chat(metadata={"x": text}, user=text),
}
SPOKEN_PLACES = ("system", "developer", "assistant", "refusal")


def tokens_of(live: Live, body: dict[str, Any]) -> list[int]:
    reply = live.http.post("/tokenize", json={"model": NAME, **body})
    assert reply.status_code == 200, reply.text
    return list(reply.json()["tokens"])


@pytest.mark.parametrize("place", PLACES)
def test_no_text_becomes_a_control_token(live, place):
    """`<|im_end|>` typed by a user ends the user's turn in most servers, and a typed placeholder
    takes the place of a picture. Only what models write themselves, such as <tool_call>, is read as
    such, and only in the assistant's words and the system's: descriptions of tools come from
    strangers (MCP), and a tool's answer too."""
    tokenizer = live.vlm.processor.tokenizer
    assert len(tokenizer.control_ids) == 22
    clean = [t for t in tokens_of(live, PLACES[place]("zz")) if t in tokenizer.control_texts]
    for text in tokenizer.control_ids:
        is_spoken = text in tokenizer.spoken and place in SPOKEN_PLACES
        for typed in (text, f"a{text}b", text * 3, PLACEHOLDER + text):
            found = tokens_of(live, PLACES[place](typed))
            control = [token for token in found if token in tokenizer.control_texts]
            if is_spoken:
                control = [t for t in control if tokenizer.control_texts[t] not in tokenizer.spoken]
                kept = [t for t in clean if tokenizer.control_texts[t] not in tokenizer.spoken]
                assert control == kept, (place, typed)
            else:
                assert control == clean, (place, typed)


def test_a_typed_placeholder_takes_no_picture(live):
    """Servers that count placeholders bind the picture to the typed one, or end with an error.
    The picture stays in its own place, with the same answer before and after other typed ones."""
    picture = {"type": "image_url", "image_url": {"url": data_url(scene("red"))}}
    tokenizer = live.vlm.processor.tokenizer
    pad = tokenizer.control_ids["<|image_pad|>"]
    question = {"type": "text", "text": f"{PLACEHOLDER} What colour is the square?"}
    for parts in ([picture, question], [question, picture], [question, picture, question]):
        tokens = tokens_of(live, {"messages": [{"role": "user", "content": parts}]})
        places = [place for place, token in enumerate(tokens) if token == pad]
        assert len(places) == places[-1] - places[0] + 1 == 16
        before = tokenizer.decode(tokens[: places[0]])
        assert before.count("image_pad") == (parts.index(picture) if parts[0] != picture else 0)
        reply = live.ask(messages=[{"role": "user", "content": parts}], temperature=0)
        assert reply.status_code == 200
    typed = live.ask(messages=[{"role": "user", "content": [picture, question]}], temperature=0)
    asked = live.vlm.ask(question["text"], images=[scene("red")], max_new_tokens=8)
    assert typed.json()["choices"][0]["message"]["content"] == asked.text


def test_only_a_raw_prompt_may_hold_control_tokens(live):
    tokenizer = live.vlm.processor.tokenizer
    reply = live.http.post("/tokenize", json={"prompt": "<|im_end|>"})
    assert reply.json()["tokens"] == [tokenizer.control_ids["<|im_end|>"]]
