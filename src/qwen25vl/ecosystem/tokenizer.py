"""The ecosystem's tokenizer: a call, a vocabulary and special tokens around `processing.tokenizer`.

As there, a text that is given to the tokenizer itself counts as the output of a template: control
tokens in it are control tokens. Messages keep what people typed as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

from qwen25vl.arguments import refuse_unknown
from qwen25vl.ecosystem.encoding_batches import pad_encodings
from qwen25vl.ecosystem.encodings import (
    CALL_DEFAULTS,
    Tensors,
    TextOptions,
    batch_rows,
    first_rows,
    read_padding,
    set_options,
)
from qwen25vl.ecosystem.processor_files import copy_tokenizer, find_folder, own_template
from qwen25vl.errors import CheckpointError, OptionError, UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.processing.collate import Padding, Side, check_side
from qwen25vl.processing.conversations import Messages, render_conversations
from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT
from qwen25vl.processing.prompt_media import check_texts
from qwen25vl.processing.tokenizer import Tokenizer

MODEL_MAX_LENGTH = 131072


class Qwen2Tokenizer(Tokenizer):
    """Call it with a text or a list of them. padding_side: "left" unless the checkpoint's files or
    the caller say otherwise; model_max_length: where truncation cuts without a max_length."""

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    is_fast: ClassVar[bool] = True
    truncation_side: ClassVar[str] = "right"
    folder: Path | None = None
    chat_template: str | None = None
    model_max_length: int = MODEL_MAX_LENGTH
    init_kwargs: dict[str, Any]
    _padding_side: Side = "left"
    image_token: str = IMAGE_SLOT
    video_token: str = VIDEO_SLOT
    bos_token: str | None = None
    bos_token_id: int | None = None
    unk_token: str | None = None
    unk_token_id: int | None = None

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **options: Any) -> Self:
        """Read a checkpoint's tokenizer. options: padding_side, model_max_length; defaults of calls
        (padding, max_length, truncation); revision, cache_dir, local_files_only, token.

        Raises CheckpointError, HubError or OptionError.
        """
        folder, own = find_folder(name_or_folder, options)
        own.pop("use_fast", None)
        known = ("padding_side", "model_max_length", "chat_template", *CALL_DEFAULTS)
        refuse_unknown(own, known)
        made = cls.from_folder(folder)
        set_options(made, own)
        return made

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read a folder's files. Raises CheckpointError where they are missing or damaged."""
        made = super().from_folder(folder)
        made.folder, made.init_kwargs = Path(folder), {}
        made.chat_template, config = own_template(made.folder)
        if type(length := config.get("model_max_length")) is int and length > 0:
            made.model_max_length = length
        if (side := config.get("padding_side")) is not None:
            try:
                made.padding_side = side
            except UsageError as error:
                raise CheckpointError(f"{folder}/tokenizer_config.json: {error}") from None
        return made

    @property
    def padding_side(self) -> Side:
        return self._padding_side

    @padding_side.setter
    def padding_side(self, side: Side) -> None:
        self._padding_side = check_side(side)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        return_tensors: Tensors = None,
        **options: Unpack[TextOptions],
    ) -> ModelInputs:
        """input_ids and attention_mask: of a text lists of numbers, of a list of texts a list of
        such lists; with return_tensors "pt" or "np" [B, L].

        options: padding, padding_side, max_length, truncation, pad_to_multiple_of as in the
        ecosystem; by default nothing is padded or cut. Raises UsageError.
        """
        refuse_unknown(options, TextOptions.__annotations__)
        given: dict[str, Any] = {**self.init_kwargs, **options}
        padding = read_padding(given, self.padding_side, self.model_max_length, pads=False)
        rows = [self.encode_pieces([(prompt, True)]) for prompt in check_texts(text)]
        result = batch_rows(rows, padding, self, return_tensors)
        if given.get("return_attention_mask") is False:
            del result["attention_mask"]
        return first_rows(result) if return_tensors is None and isinstance(text, str) else result

    def encode(
        self, text: str, *, control: bool = True, add_special_tokens: bool = True,
        return_tensors: Tensors = None,
    ) -> Any:  # fmt: skip
        """The ids of a text, a list or [1, L]. Without `control` control tokens in it are letters.
        add_special_tokens has no effect: this tokenizer adds none."""
        ids = self.encode_pieces([(text, control)])
        if return_tensors is None:
            return ids
        return batch_rows([ids], Padding(), self, return_tensors).input_ids

    def decode(
        self, ids: Any, skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:  # fmt: skip
        """Ids to text; ids of several sequences to a list of texts. The last option has no effect
        on byte-level tokens, as in transformers."""
        numbers = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(numbers, int):
            numbers = [numbers]
        numbers = [each.tolist() if hasattr(each, "tolist") else each for each in numbers]
        if any(isinstance(each, list | tuple) for each in numbers):
            return [self.decode(each, skip_special_tokens) for each in numbers]
        return super().decode(numbers, skip_special_tokens)

    def batch_decode(
        self, sequences: Iterable[Any], skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:  # fmt: skip
        """`decode` of each."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def pad(
        self, encoded_inputs: Any, padding: Any = True, max_length: int | None = None,
        pad_to_multiple_of: int | None = None, padding_side: Side | None = None,
        return_attention_mask: bool | None = None, return_tensors: Tensors = None,
        verbose: bool = True,
    ) -> ModelInputs:  # fmt: skip
        """Fill up encodings: one, a list of them, or a mapping of lists.

        ids and masks are filled; what else is there, such as labels, stays as it is. Tensors and
        arrays stay such without return_tensors. verbose has no effect. Raises UsageError.
        """
        given = {"padding": padding, "padding_side": padding_side,
                 "max_length": self.model_max_length if max_length is None else max_length,
                 "pad_to_multiple_of": pad_to_multiple_of}  # fmt: skip
        how = read_padding(given, self.padding_side, self.model_max_length, pads=True)
        kind, number = return_tensors, self.pad_token_id
        return pad_encodings(encoded_inputs, how, number, kind, return_attention_mask)

    def apply_chat_template(
        self,
        conversation: Messages | Sequence[Messages],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: Tensors = None,
        **options: Unpack[TextOptions],
    ) -> Any:
        """Render messages of text, and with `tokenize` turn them into ids; typed text stays text as
        in the processor's method. Raises MessageError, OptionError, UsageError."""
        refuse_unknown(options, TextOptions.__annotations__)
        template = chat_template or self.chat_template
        if template is None:
            raise CheckpointError("this tokenizer has no chat template; give chat_template=")
        rendered = render_conversations(
            conversation,
            template,
            self,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            add_vision_id=False,
        )
        if not tokenize:
            return rendered.texts
        if any(rendered.media):
            raise UsageError("a tokenizer takes no pictures; use the processor's method")
        rows = [self.encode_pieces(pieces) for pieces in rendered.pieces]
        how = read_padding(options, self.padding_side, self.model_max_length, pads=False)
        result = batch_rows(rows, how, self, return_tensors)
        if return_tensors is None and not rendered.is_batch:
            result = first_rows(result)
        return result if return_dict else result.input_ids

    def save_pretrained(self, folder: str | Path) -> tuple[str, ...]:
        """Copy the files into a folder, and return their paths."""
        if self.folder is None:
            raise UsageError("this tokenizer was not loaded from a folder: it has no files to save")
        return tuple(copy_tokenizer(self.folder, Path(folder)))

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def image_token_id(self) -> int:
        return self.control_ids[self.image_token]

    @property
    def video_token_id(self) -> int:
        return self.control_ids[self.video_token]

    @property
    def eos_token(self) -> str:
        return self.named_tokens["eos_token"]

    @eos_token.setter
    def eos_token(self, token: str) -> None:
        self.eos_token_id = self.rename("eos_token", token)

    @property
    def pad_token(self) -> str:
        return self.named_tokens["pad_token"]

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        self.pad_token_id = self.rename("pad_token", token)

    def rename(self, name: str, token: str) -> int:
        """The id of the token that has this name from now on. Raises OptionError for no token."""
        if token not in self.control_ids:
            raise OptionError(
                f"{name} is {token!r}; it must be one of {', '.join(self.control_ids)}"
            )
        self.named_tokens[name] = token
        return self.control_ids[token]

    @property
    def all_special_tokens(self) -> list[str]:
        """Those with a name, then all others that decoding may skip."""
        others = [self.control_texts[number] for number in sorted(self.special_ids)]
        return list(dict.fromkeys([*self.named_tokens.values(), *others]))

    @property
    def all_special_ids(self) -> list[int]:
        return [self.control_ids[token] for token in self.all_special_tokens]

    @property
    def vocab_size(self) -> int:
        """Without the added tokens."""
        return int(self.bpe.get_vocab_size())

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        return {**self.bpe.get_vocab(), **self.control_ids}

    def get_vocab(self) -> dict[str, int]:
        """The id of every token, the added ones included."""
        return dict(self.vocabulary)

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or a list of those of several; None for what is no token."""
        if isinstance(tokens, str):
            known = self.control_ids.get(tokens)
            return self.bpe.token_to_id(tokens) if known is None else known
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> Any:
        """The token of an id, or a list of those of several, as the vocabulary spells them."""
        if isinstance(ids, int):
            known = self.control_texts.get(ids)
            return self.bpe.id_to_token(ids) if known is None else known
        numbers = [int(number) for number in ids]
        if skip_special_tokens:
            numbers = [number for number in numbers if number not in self.special_ids]
        return [self.convert_ids_to_tokens(number) for number in numbers]

    def tokenize(self, text: str) -> list[str]:
        """A text's tokens as the vocabulary spells them."""
        return list(self.convert_ids_to_tokens(self.encode_pieces([(text, True)])))


Qwen2TokenizerFast = Qwen2Tokenizer


class AutoTokenizer:
    """The name under which code for transformers loads a Qwen2Tokenizer."""

    from_pretrained = Qwen2Tokenizer.from_pretrained
