"""`qwen25vl chat`: many turns. Lines that begin with / are commands,
all others are said to the model."""

from __future__ import annotations

import argparse
import re
import sys
from difflib import get_close_matches
from typing import Any

from qwen25vl.cli.checks import check, check_local
from qwen25vl.cli.lines import LineReader, split_sources
from qwen25vl.cli.opening import generation_options, open_model, say
from qwen25vl.ecosystem.adapters import BASE
from qwen25vl.errors import (
    ContextLengthError,
    MediaError,
    OutOfMemoryError,
    Qwen25VLError,
    UsageError,
)
from qwen25vl.processing.keeping import keep_source
from qwen25vl.processing.media import load_bytes, load_picture, source_name
from qwen25vl.processing.pdf_sources import Document, find_document
from qwen25vl.question import compose

HELP = '''\
/image PICTURE …   add pictures to the next question (files or URLs)
/video VIDEO …     add videos to the next question
/adapter NAME      let this adapter answer from now on; /adapter alone: the model itself
/reset             forget the conversation, and what was added for the next question
/help              show this list
/quit              leave (so does Ctrl-D); Ctrl-C stops an answer
"""                begins and ends a question of several lines; pasted lines are one question'''
COMMANDS = ("/image", "/video", "/adapter", "/reset", "/help", "/quit", "/exit")


def chat(arguments: argparse.Namespace) -> int:
    """Talk until /quit or the end of input. When input comes from a pipe, the code of the last
    error is returned."""
    check(arguments)
    talk = Talk(arguments)
    reader = LineReader()
    if reader.is_terminal:
        print(HELP, file=sys.stderr)
    code = 0
    while True:
        try:
            talk.take(reader.read())
        except EOFError:
            return 0 if reader.is_terminal else code
        except KeyboardInterrupt:
            if not reader.is_terminal:
                raise
            print("\n(/quit or Ctrl-D leaves)", file=sys.stderr)
        except Qwen25VLError as error:
            say(str(error))
            code = error.exit_code


class Talk:
    """A conversation, and the pictures and videos that wait for its next question."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.limit: int | None = arguments.max_decoded_pixels
        self.images: list[Any] = [keep(source, self.limit) for source in arguments.image]
        self.videos: list[Any] = []
        self.vlm = open_model(arguments)
        self.conversation = self.vlm.chat(arguments.system, fps=arguments.fps)
        self.options = generation_options(arguments)
        for picture in self.images:
            self.prepare([picture], [])
        self.add("/video", arguments.video)

    def take(self, text: str) -> None:
        """Obey commands and ask a question; an empty text does nothing. Raises EOFError for /quit.

        Pasted lines are one question, before which commands may stand.
        """
        lines = text.split("\n")
        while lines and is_command(lines[0], alone=len(lines) == 1):
            self.obey(lines.pop(0))
        if question := "\n".join(lines).strip():
            self.ask(question)

    def obey(self, line: str) -> None:
        word, *rest = line.split(maxsplit=1)
        command = word.lower()
        if command in ("/quit", "/exit"):
            raise EOFError
        if command == "/help":
            print(HELP, file=sys.stderr)
        elif command == "/adapter":
            self.choose_adapter(rest[0].strip() if rest else BASE)
        elif command == "/reset":
            self.conversation.reset()
            self.forget_media()
        elif command in COMMANDS:
            if not rest:
                raise UsageError(f"{command} needs a file or an address")
            self.add(command, split_sources(rest[0].strip()))
        else:
            nearest = get_close_matches(command, COMMANDS, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ";"
            raise UsageError(f"{word} is not a command{hint} /help lists them")

    def choose_adapter(self, name: str) -> None:
        """Let another adapter, or none, answer what is asked from now on."""
        self.vlm.model.adapters.find(self.vlm.model, name)
        self.conversation.adapter = name

    def add(self, command: str, sources: list[str]) -> None:
        """Have pictures or videos wait for the next question;
        none of them where one cannot be used.

        A picture is read here for good: its file may change or vanish before the conversation ends.
        """
        if command == "/image":
            images = [keep(source, self.limit) for source in sources]
            for picture in images:
                self.prepare([picture], [])
            self.images += images
        else:
            for source in sources:
                check_local(source)
                self.prepare([], [source])
            self.videos += sources

    def prepare(self, images: list[Any], videos: list[Any]) -> None:
        """Make media ready for the model and drop the result: raises what a question would."""
        self.vlm.processor.apply_chat_template(
            compose("", images, videos, None),
            tokenize=True,
            return_dict=True,
            video_fps=self.conversation.fps,
        )

    def ask(self, question: str) -> None:
        """Ask with the waiting media. Ctrl-C stops the answer, not the conversation.

        Media that no question could be answered with are dropped. Otherwise they wait on where the
        conversation forgets the question: where nothing was answered.
        """
        try:
            self.write(question)
        except KeyboardInterrupt:
            say("stopped")
        except MediaError:
            self.drop_unreadable()
            raise
        except (ContextLengthError, OutOfMemoryError):
            self.drop_waiting()
            raise

    def write(self, question: str) -> None:
        """Write the answer as it comes; what waited for it is then part of the conversation."""
        stream = self.conversation.stream(question, self.images, self.videos, **self.options)
        try:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
        finally:
            print(flush=True)
            if stream.text:
                self.forget_media()

    def forget_media(self) -> None:
        self.images, self.videos = [], []

    def drop_waiting(self) -> None:
        for source in (*self.images, *self.videos):
            say(f"{source_name(source)} waits no longer; add it again for another question")
        self.forget_media()

    def drop_unreadable(self) -> None:
        """Leave out every file that cannot be read any more, of what waits and of earlier turns."""
        lists = [self.videos, *(message["content"] for message, _ in self.conversation.turns)]
        for items in lists:
            for item in list(items):
                video = item if isinstance(item, str) else item.get("video")
                if video is not None and not self.is_readable(video):
                    items.remove(item)
                    say(
                        f"{source_name(video)} cannot be read any more; the conversation goes on "
                        "without it"
                    )

    def is_readable(self, video: Any) -> bool:
        try:
            self.prepare([], [video])
        except MediaError:
            return False
        return True


def is_command(line: str, alone: bool) -> bool:
    """Whether a line is meant as a command: in a text of several lines only what is one."""
    word = next(iter(line.split(maxsplit=1)), "")
    return word.lower() in COMMANDS or (alone and re.fullmatch(r"/[A-Za-z]*", word) is not None)


def keep(source: Any, max_decoded_pixels: int | None) -> Any:
    """A picture or a document in memory that goes by the name of its source."""
    source = keep_source(source)
    if (found := find_document(source)) is not None:
        return Document(load_bytes(found.source), found.pages, found.name)
    limits: dict[str, Any] = {}
    if max_decoded_pixels is not None:
        limits["max_decoded_pixels"] = max_decoded_pixels
    picture = load_picture(source, **limits)
    picture.filename = source_name(source)  # type: ignore[attr-defined]
    return picture
