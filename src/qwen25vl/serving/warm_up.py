"""The first question, asked by the server itself before it listens."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from qwen25vl.serving.wire import ChatRequest

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

SIDE = 56  # pixels


async def warm_up(service: Service) -> None:
    """Answer a question about a small picture with one token. Raises whatever fails."""
    from PIL import Image

    from qwen25vl.serving.chat import open_chat

    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "white").save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Hi"}]
    request = ChatRequest(messages=[{"role": "user", "content": content}], max_tokens=1)
    generation = await open_chat(service, request, None)
    await generation.finish()
