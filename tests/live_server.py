"""A live server of a model, and pictures for it."""

import base64
import io
import sys
import threading
import time
import traceback
import warnings

import httpx
from PIL import Image

import qwen25vl
from qwen25vl.serving.server import Listening, Server
from qwen25vl.serving.settings import ServerSettings

NAME = "qwen25vl-demo"
QUESTION = "What colour is the square?"  # about `scene`


class Live:
    """A server in a thread of its own. url: without a path."""

    def __init__(self, settings: ServerSettings, vlm: qwen25vl.VisionLanguageModel) -> None:
        self.said: list[str] = []
        self.vlm = vlm
        self.server = Server(vlm, settings, Listening(), self.said.append)
        self.service = self.server.service
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 60
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.url = self.server.address
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def ask(self, question: str = "Hello", **fields: object) -> httpx.Response:
        """One chat request of a text."""
        messages = [{"role": "user", "content": question}]
        body = {"model": NAME, "messages": messages, "max_tokens": 8, **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def close(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)
        if self.thread.is_alive():  # says where it stands, and does not hold up the other tests
            frame = sys._current_frames().get(self.thread.ident or 0)
            stack = "".join(traceback.format_stack(frame)) if frame else ""
            warnings.warn(f"the server has not ended after 30 s:\n{stack}", stacklevel=2)
            self.server.force_exit = True
            self.thread.join(60)
        assert not self.thread.is_alive()


def scene(colour: str = "red", side: int = 112) -> Image.Image:
    """A square on white."""
    picture = Image.new("RGB", (side, side), "white")
    picture.paste(colour, (side // 4, side // 4, 3 * side // 4, 3 * side // 4))
    return picture


def data_url(picture: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    picture.save(file, kind)
    text = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"
