"""The errors that callers may catch.

Every message is one line that says what was given and what was expected. `exit_code` is what the
command line returns: 2 where the call itself was wrong, 1 where the call was right but could not be
carried out.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

LESS_MEMORY = "try a model in int4, smaller pictures (max_pixels) or fewer frames (fps)"


class Qwen25VLError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 1


class UsageError(Qwen25VLError, ValueError):
    """The call was wrong: an invalid value or a meaningless combination."""

    exit_code = 2


class OptionError(UsageError, TypeError):
    """An option that does not exist. Unknown options are never ignored."""


class TokenError(UsageError, IndexError):
    """A token id that the vocabulary does not have."""


class MessageError(UsageError):
    """Messages of an unknown shape, or media that do not fit the slots in the text."""


class SchemaError(UsageError):
    """A schema, pattern or grammar that answers cannot be made to follow; names the keyword."""


class ContextLengthError(UsageError):
    """The prompt is longer than the model's context;
    says what was needed and which item takes most of it."""


class MediaError(Qwen25VLError, ValueError):
    """A picture or video that cannot be used."""


class MediaNotFoundError(MediaError, FileNotFoundError):
    """The path or address leads to nothing that can be read."""


class MediaFormatError(MediaError):
    """The content is no picture or video of a supported format, or it is cut off or damaged."""


class MediaSizeError(MediaError):
    """Too many pixels, an extreme aspect ratio, or a limit that no size can meet."""


class MediaWarning(UserWarning):
    """A picture is used, but only in part or perhaps not as intended; says what was left out."""


class CheckpointError(Qwen25VLError):
    """A folder that is no Qwen2.5-VL checkpoint, or one whose files are missing or damaged."""


class ConfigError(CheckpointError, ValueError):
    """config.json holds invalid values."""


class TensorError(CheckpointError):
    """Tensors missing, unexpected or of the wrong shape; lists them all."""


class HubError(Qwen25VLError, OSError):
    """A hub name that cannot be resolved: offline, unknown or not permitted."""


class DependencyError(Qwen25VLError, ImportError):
    """An optional package or a device is missing; says what to do."""


class OutOfMemoryError(Qwen25VLError, MemoryError):
    """The work does not fit into memory; says what was needed."""


class DeadlineError(Qwen25VLError, TimeoutError):
    """The time that a request was given was over before its answer began."""


class NumericsError(Qwen25VLError, ArithmeticError):
    """The model computed numbers that are not finite; says in which precision to run it."""


@contextmanager
def named_out_of_memory() -> Iterator[None]:
    """Turn the out-of-memory errors of Python and torch (on a CPU a plain
    RuntimeError) into OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, Qwen25VLError) or not is_out_of_memory(error):
            raise
        wanted = re.search(r"allocate (\d+) bytes", str(error))
        need = f": the last step wanted another {int(wanted[1]) / 1e9:.2f} GB" if wanted else ""
        raise OutOfMemoryError(f"out of memory{need}; {LESS_MEMORY}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that memory is lacking."""
    words = "MemoryError|out of memory|can't allocate memory|not enough memory"
    is_candidate = isinstance(error, MemoryError | RuntimeError)
    return is_candidate and re.search(words, repr(error)) is not None
