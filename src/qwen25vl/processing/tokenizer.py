"""Text to ids and back: byte-level BPE from the checkpoint's tokenizer.json.

The file's added tokens (<|im_start|>, <|image_pad|>, <tool_call>, …) are *control* tokens: they
steer the model. They are taken out of the tokenizer proper, which therefore cannot produce one, and
put in by `encode` only where the caller says that a text is part of a template. What a person typed
stays text, whatever it spells.

Some control tokens are *spoken*: the model writes them in its answers (<tool_call>, <|box_start|>,
…), and system messages show it how. Only these may come from the text of a message, and only in the
assistant's and the system's; `template` cuts them out there. They are the tokens that the file does
not call special, and those that mark boxes, quads and the names of objects. All others make up the
prompt (turns, slots of pictures, end, padding); no text becomes one of them.

What surprises: ordinary text on both sides of such a border is encoded in one piece, because the
merges of the reference run across it ("\\n" of the template and "\\n" of the user are one token).
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as ByteLevelBPE
from tokenizers import decoders, pre_tokenizers

from qwen25vl.config_values import in_one_line, shown
from qwen25vl.errors import CheckpointError
from qwen25vl.processing.tokenizer_files import read_tokenizer_files

MAX_IDS = 1 << 32  # that the library can be asked about
SPOKEN = (
    "<|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> "
    "<tool_call> </tool_call>"
).split()
STRUCTURE = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|>".split()
STRUCTURE += "<|vision_pad|> <|image_pad|> <|video_pad|>".split()
Piece = tuple[str, bool]
"""A text, and whether control tokens in it are control tokens."""


class Tokenizer:
    """control_ids: id of every control token; special_ids: those that decoding may skip;
    eos and pad ids.

    spoken: the control tokens that the text of an assistant's or system message may hold;
    structure: all others.
    """

    def __init__(
        self,
        bpe: ByteLevelBPE,
        added_tokens: Sequence[dict[str, Any]],
        eos_token: str,
        pad_token: str,
    ) -> None:
        """`bpe` has no added tokens; `added_tokens` are tokenizer.json's."""
        self.bpe = bpe
        self.control_ids = {token["content"]: int(token["id"]) for token in added_tokens}
        self.control_texts = {number: text for text, number in self.control_ids.items()}
        self.special_ids = frozenset(
            int(token["id"]) for token in added_tokens if token.get("special")
        )
        for token in (eos_token, pad_token):
            if token not in self.control_ids:
                raise CheckpointError(
                    f"the tokenizer has no token {shown(token)}, which every prompt needs; give "
                    "processor= (--processor) a folder that has the whole tokenizer"
                )
        # as templates know them
        self.named_tokens = {"eos_token": eos_token, "pad_token": pad_token}
        self.eos_token_id, self.pad_token_id = (
            self.control_ids[eos_token],
            self.control_ids[pad_token],
        )
        self.control_pattern = one_of(self.control_ids)
        frame = {*STRUCTURE, eos_token, pad_token}
        special = {self.control_texts[number] for number in self.special_ids}
        may_speak = self.control_ids.keys() - special | set(SPOKEN) & self.control_ids.keys()
        has_frame = {text for text in may_speak if any(part in text for part in frame)}
        self.spoken = frozenset(may_speak - has_frame)
        self.structure = frozenset(self.control_ids) - self.spoken

    def __repr__(self) -> str:
        return f"Tokenizer({self.bpe.get_vocab_size()} + {len(self.control_ids)} control tokens)"

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read tokenizer.json and tokenizer_config.json. Raises CheckpointError where they are
        missing or damaged."""
        files = read_tokenizer_files(Path(folder))
        try:
            bpe = ByteLevelBPE.from_str(files.text)
        except BaseException as error:  # the library raises nothing narrower, and may panic
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise CheckpointError(f"{files.path} cannot be read: {in_one_line(error)}") from None
        if not isinstance(bpe.decoder, decoders.ByteLevel):
            raise CheckpointError(
                f"{files.path} is not a byte-level tokenizer, which this model needs"
            )
        # training leaves its own in the file, and prompts would be cut in silence
        bpe.no_truncation()
        bpe.no_padding()
        try:
            return cls(bpe, files.added, files.eos_token, files.pad_token)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Text to ids; only with `control` do control tokens in it become control tokens."""
        return self.encode_pieces([(text, control)])

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """The ids of pieces that follow each other, neighbouring ordinary text encoded as one."""
        ids: list[int] = []
        ordinary = ""
        for text, control in pieces:
            for part in self.control_pattern.split(text) if control else [text]:
                if control and part in self.control_ids:
                    ids += [*self.encode_ordinary(ordinary), self.control_ids[part]]
                    ordinary = ""
                else:
                    ordinary += part
        return ids + self.encode_ordinary(ordinary)

    def encode_ordinary(self, text: str) -> list[int]:
        # a lone surrogate, which JSON may bring, is no character
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return self.bpe.encode(clean, add_special_tokens=False).ids if text else []

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Ids to text; bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        decoder = StreamDecoder(self, skip_special_tokens)
        return "".join([decoder.push(int(number)) for number in ids]) + decoder.finish()

    def batch_decode(
        self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False
    ) -> list[str]:
        """`decode` of each."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def stream_decoder(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder for ids that come one by one."""
        return StreamDecoder(self, skip_special_tokens)

    def token_bytes(self, number: int) -> bytes:
        """The bytes of an ordinary token, none for an id beyond the vocabulary (or −100,
        as labels have it)."""
        token = self.bpe.id_to_token(number) if 0 <= number < MAX_IDS else None
        return bytes(self.bytes_of_letters[letter] for letter in token) if token else b""

    def spoken_text(self, ids: Iterable[int], text: str) -> str:
        """An answer as it goes back to the model: with the spoken tokens that decoding skipped.

        ids: the tokens written; text: what was shown of them, which a stop string may have cut.
        """
        decoder = StreamDecoder(self, skip_special_tokens=True)
        spoken, rest = "", text
        for number in ids:
            shown = decoder.push(number)
            if not rest.startswith(shown):
                break
            rest = rest[len(shown) :]
            token = self.control_texts.get(number, "")
            spoken += token if token in self.spoken else shown
        return spoken + rest

    @cached_property
    def bytes_of_letters(self) -> dict[str, int]:
        """Byte-level BPE spells each byte as one printable letter;
        this is the way back (GPT-2's table)."""
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        rest = [byte for byte in range(256) if byte not in printable]
        letters = {chr(byte): byte for byte in printable} | {
            chr(256 + i): byte for i, byte in enumerate(rest)
        }
        assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
        return letters


class StreamDecoder:
    """Ids to text one by one; a character whose bytes are not all there
    waits for the rest of them."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        self.utf8 = getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, often none."""
        if (text := self.tokenizer.control_texts.get(token_id)) is None:
            return self.utf8.decode(self.tokenizer.token_bytes(token_id))
        if self.skip_special_tokens and token_id in self.tokenizer.special_ids:
            return ""
        return self.utf8.decode(text.encode())

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed."""
        return self.utf8.decode(b"", final=True)


def one_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that captures any of the texts, the longest that fits; of no texts nothing."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")
