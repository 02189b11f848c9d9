"""The chat template for conversations with tools.

The released models have two templates: one of texts, with tools, and one of pictures and videos,
without. The text model saw tools in the form of the first during its training. `TOOL_TEMPLATE`
joins the two: without tools it writes what the template of pictures writes, with tools what the
template of texts writes, and media in any message, the results of tools included.
"""

from __future__ import annotations

from functools import lru_cache

from qwen25vl.errors import Qwen25VLError
from qwen25vl.processing.messages import Message, Part
from qwen25vl.processing.template import render
from qwen25vl.processing.template_language import compile_template

TOOL_TEMPLATE = """\
{%- set images = namespace(value=0) -%}
{%- set videos = namespace(value=0) -%}
{%- macro show(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
                {%- set images.value = images.value + 1 -%}
                {%- if add_vision_id -%}
                    {{- 'Picture ' ~ images.value ~ ': ' -}}
                {%- endif -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' or 'video' in part -%}
                {%- set videos.value = videos.value + 1 -%}
                {%- if add_vision_id -%}
                    {{- 'Video ' ~ videos.value ~ ': ' -}}
                {%- endif -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set has_system = messages[0].role == 'system' -%}
{%- if tools or not has_system -%}
    {{- '<|im_start|>system\n' -}}
    {%- if has_system -%}
        {{- show(messages[0].content) -}}
    {%- else -%}
        {{- 'You are a helpful assistant.' -}}
    {%- endif -%}
    {%- if tools -%}
        {{- '\n\n# Tools\n\nYou may call one or more functions to assist with the user query.' -}}
        {{- '\n\nYou are provided with function signatures within <tools></tools> XML tags:' -}}
        {{- '\n<tools>' -}}
        {%- for tool in tools -%}
            {{- '\n' -}}
            {{- tool | tojson -}}
        {%- endfor -%}
        {{- '\n</tools>\n\nFor each function call, return a json object with function name and ' -}}
        {{- 'arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n' -}}
        {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' -}}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
            {{- '<|im_start|>user' -}}
        {%- endif -%}
        {{- '\n<tool_response>\n' -}}
        {{- show(message.content) -}}
        {{- '\n</tool_response>' -}}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
            {{- '<|im_end|>\n' -}}
        {%- endif -%}
    {%- elif message.tool_calls -%}
        {{- '<|im_start|>' ~ message.role -}}
        {%- if message.content -%}
            {{- '\n' -}}
            {{- show(message.content) -}}
        {%- endif -%}
        {%- for call in message.tool_calls -%}
            {{- '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' -}}
            {{- call.function.arguments | tojson -}}
            {{- '}\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\n' -}}
    {%- elif not (loop.first and has_system and tools) -%}
        {{- '<|im_start|>' ~ message.role ~ '\n' -}}
        {{- show(message.content) -}}
        {{- '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


def with_tools(template: str) -> str:
    """The template that shows tools: this one if it does, or else `TOOL_TEMPLATE` where this one is
    that of the released models. Any other stays, and `render` refuses tools for it."""
    return TOOL_TEMPLATE if not shows_tools(template) and is_released(template) else template


def shows_tools(template: str) -> bool:
    return "tools" in compile_template(template)[1]


@lru_cache(maxsize=8)
def is_released(template: str) -> bool:
    """Whether a template writes what the released models' writes, in whatever words."""
    try:
        return all(
            render(template, messages, add_generation_prompt=True, add_vision_id=True)
            == render(TOOL_TEMPLATE, messages, add_generation_prompt=True, add_vision_id=True)
            for messages in (PROBE, PROBE[1:])
        )
    except Qwen25VLError:
        return False


PROBE = [
    Message("system", (Part("text", "a"),), True),
    Message("user", (Part("image"), Part("text", "b"), Part("video"), Part("image")), False),
    Message("assistant", (Part("text", "c"),), True),
    Message("user", (Part("text", "d"),), True),
]
