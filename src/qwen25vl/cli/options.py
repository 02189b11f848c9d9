"""Groups of options that several commands have."""

from __future__ import annotations

import argparse
from typing import Any

from qwen25vl.cli.syntax import add_hub_options


class MediaAction(argparse.Action):
    """-i a.png b.png -i c.png: collects the sources. `taken` records for each option where its last
    word went, as (name, index), and how many words it took."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Any = None,
    ) -> None:
        sources = [*getattr(namespace, self.dest), *values]
        setattr(namespace, self.dest, sources)
        namespace.taken = [*namespace.taken, (self.dest, len(sources) - 1, len(values))]


def add_media_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures and videos")
    sources = "files or URLs; - reads standard input; the option may be repeated"
    several: dict[str, Any] = {"action": MediaAction, "nargs": "+", "default": [], "help": sources}
    group.add_argument("-i", "--image", metavar="PICTURE", **several)
    group.add_argument("-v", "--video", metavar="VIDEO", **several)
    parser.set_defaults(taken=[])
    group.add_argument(
        "--min-pixels", type=int, metavar="N", help="enlarge pictures to at least this area"
    )
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help="shrink pictures to at most this area"
    )
    whole = (
        "decode pictures of up to N pixels at full size (default: 178956970); a pixel takes up to "
        "14 bytes"
    )
    group.add_argument("--max-decoded-pixels", type=int, metavar="N", help=whole)
    group.add_argument(
        "--fps", type=float, metavar="F", help="frames per second to take from videos (default: 2)"
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="checkpoint folder or hub name (default: the built-in model)",
    )
    precisions = ("auto", "bfloat16", "float32", "float16")
    group.add_argument(
        "--dtype", choices=precisions, default="auto", help="precision of the weights"
    )
    kinds = ("int8", "int4", "int8+vision", "int4+vision")
    fewer_bits = (
        "quantise the weights while loading: int8 or int4; +vision quantises the vision encoder "
        "too, to 8 bits"
    )
    group.add_argument("--quantize", choices=kinds, metavar="KIND", help=fewer_bits)
    processor = (
        "folder or hub name of the tokenizer, the chat template and the settings for pictures "
        "(default: the model's own)"
    )
    group.add_argument("--processor", metavar="FOLDER", help=processor)
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, … (default: cpu)")
    add_hub_options(parser)


def add_adapter_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help=(
            "a LoRA adapter, a folder or a hub name; the option may be repeated: the first one "
            "answers, /adapter in a chat takes another"
        ),
    )


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "answer", "defaults come from the checkpoint's generation_config.json"
    )
    group.add_argument("--system", metavar="TEXT", help="system message")
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="maximum length of the answer in tokens"
    )
    group.add_argument(
        "--min-new-tokens", type=int, metavar="N", help="minimum length of the answer in tokens"
    )
    sampled = "0: always the likeliest token; 1: sample from the model's own distribution"
    group.add_argument("--temperature", type=float, metavar="T", help=sampled)
    group.add_argument(
        "--top-k", type=int, metavar="K", help="sample among the K likeliest tokens only"
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample among the likeliest tokens whose probabilities sum to P",
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="sample among tokens at least P times as likely as the best one",
    )
    repeated = "above 1: make tokens of the prompt and answer less likely"
    group.add_argument("--repetition-penalty", type=float, metavar="R", help=repeated)
    present = "subtracted from the logit of each token in the answer so far"
    group.add_argument("--presence-penalty", type=float, metavar="R", help=present)
    group.add_argument(
        "--frequency-penalty",
        type=float,
        metavar="R",
        help="subtracted once per occurrence in the answer so far",
    )
    end = "end the answer before this text; the option may be repeated"
    group.add_argument("--stop", dest="stop_strings", action="append", metavar="TEXT", help=end)
    lookup = (
        "draft up to N tokens at once from earlier text: the same answer, faster where text repeats"
    )
    group.add_argument(
        "--prompt-lookup", dest="prompt_lookup_num_tokens", type=int, metavar="N", help=lookup
    )
    group.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")
