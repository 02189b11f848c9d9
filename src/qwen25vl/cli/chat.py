"""`qwen25vl chat`: many turns. Lines that begin with / are commands, all others are said to the model."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from qwen25vl.cli.checks import check, check_local
from qwen25vl.cli.opening import generation_options, open_model, say
from qwen25vl.errors import Qwen25VLError, UsageError
from qwen25vl.processing.media import load_picture

HELP = """\
/image PICTURE   add a picture to the next question (file or address)
/video VIDEO     add a video to the next question
/reset           forget the conversation, and what waits for the next question
/help            this list
/quit            leave (so does Ctrl-D); Ctrl-C stops an answer"""


def chat(arguments: argparse.Namespace) -> int:
    """Talk until /quit or the end of input. When input comes from a pipe, the code of the last error is returned."""
    check(arguments)
    talk = Talk(arguments)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (line editing and history for input())
        print(HELP, file=sys.stderr)
    code = 0
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
            if line in ("/quit", "/exit"):
                return 0 if is_terminal else code
            talk.take(line)
        except EOFError:
            return 0 if is_terminal else code
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("\n(/quit or Ctrl-D leaves)", file=sys.stderr)
        except Qwen25VLError as error:
            say(str(error))
            code = error.exit_code


class Talk:
    """A conversation, and the pictures and videos that wait for its next question."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        vlm = open_model(arguments)
        self.conversation = vlm.chat(arguments.system, fps=arguments.fps)
        self.options = generation_options(arguments)
        limit = arguments.max_decoded_pixels
        self.limits: dict[str, Any] = {} if limit is None else {"max_decoded_pixels": limit}
        self.images: list[Any] = list(arguments.image)
        self.videos: list[Any] = list(arguments.video)

    def take(self, line: str) -> None:
        """Obey a command or ask a question; an empty line does nothing."""
        word, _, rest = line.partition(" ")
        source = rest.strip().strip("'\"")
        if not line:
            return
        if word == "/help":
            print(HELP, file=sys.stderr)
        elif word == "/reset":
            self.conversation.reset()
            self.forget_media()
        elif word in ("/image", "/video"):
            self.add(word, source)
        elif line.startswith("/") and "/" not in word[1:]:
            raise UsageError(f"{word} is no command; /help lists them")
        else:
            self.ask(line)

    def add(self, word: str, source: str) -> None:
        """Take a picture at once, so that a wrong path is told at once; a video is read with the question."""
        if not source:
            raise UsageError(f"{word} needs a file or an address")
        if word == "/image":
            load_picture(source, **self.limits)
            self.images.append(source)
        else:
            check_local(source)
            self.videos.append(source)

    def ask(self, question: str) -> None:
        """Ask with the waiting media, and write the answer as it comes. Ctrl-C stops it, not the conversation.

        The media wait on where the conversation forgets the question: where nothing was answered.
        """
        stream = self.conversation.stream(question, self.images, self.videos, **self.options)
        try:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
        except KeyboardInterrupt:
            say("stopped")
        finally:
            print(flush=True)
            if stream.text:
                self.forget_media()

    def forget_media(self) -> None:
        self.images, self.videos = [], []
