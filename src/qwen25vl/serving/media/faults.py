"""What is wrong with a medium, in the server's own words.

Texts of libraries may hold addresses in memory, paths and pieces of the file. None of them reaches
a client.
"""

from __future__ import annotations

from qwen25vl.errors import (
    DependencyError,
    MediaFormatError,
    MediaSizeError,
    OutOfMemoryError,
    UsageError,
    is_out_of_memory,
)
from qwen25vl.processing.sources import source_name
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.media.medium import Medium, Noun, code_of

WORDS: dict[Noun, str] = {"image": "picture", "video": "video", "file": "PDF document"}
MAX_TEXT = 400


def refuse(fault: str, noun: Noun, param: str, text: str) -> ApiError:
    """A request with a medium that cannot be used."""
    return ApiError(400, text, param=param, code=code_of(fault, noun))


def describe(error: BaseException, noun: Noun, source: object) -> tuple[str, str]:
    """The fault and its text of an error that decoding raised, whatever it was.

    source: what was decoded, whose name in the error becomes a plain word.
    """
    word = WORDS[noun]
    if isinstance(error, OutOfMemoryError) or is_out_of_memory(error):
        return "memory", f"the {word} takes more memory than this server gives to one"
    if isinstance(error, DependencyError):
        return "unsupported", f"this server lacks what it needs to read such a {word}"
    if isinstance(error, MediaSizeError | UsageError) and error.__cause__ is None:
        text = str(error).replace(source_name(source), f"the {word}")[:MAX_TEXT]
        return ("large" if "pixels; at most" in text else "content"), text
    if isinstance(error, MediaFormatError) and "encrypted" in str(error):
        return "content", f"the {word} is encrypted; save it without its password first"
    return "parse", f"the {word} is cut off or damaged"


def of_death(medium: Medium, reason: str) -> ApiError:
    """The process that decoded this medium is no more."""
    word = WORDS[medium.noun]
    text = {
        "deadline": f"the {word} takes longer to read than this server allows",
        "death": f"the {word} cannot be read",
    }[reason]
    return refuse("parse", medium.noun, medium.param, text)
