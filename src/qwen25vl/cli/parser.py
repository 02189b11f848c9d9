"""The command line's syntax: commands, options and help texts."""

from __future__ import annotations

import argparse
from typing import Any

from qwen25vl import __version__
from qwen25vl.cli.syntax import Commands, Parser, add_hub_options, command
from qwen25vl.cli.writing import add_convert, add_quantize

EXAMPLES = """\
examples:
  qwen25vl run "What is in this picture?" -i photo.jpg
  qwen25vl run "What differs?" -i *.png
  qwen25vl run "Find every cup. Answer in JSON." -i table.jpg --draw cups.png -m ./my-checkpoint
  qwen25vl run "What happens?" -v clip.mp4 --fps 1 --quantize int4 -m Qwen/Qwen2.5-VL-3B-Instruct
  cat scan.png | qwen25vl run "Read the text." -i - --json
  qwen25vl chat -i photo.jpg
  qwen25vl info ./my-checkpoint -i photo.jpg -v clip.mp4
  qwen25vl quantize Qwen/Qwen2.5-VL-3B-Instruct ./3b-int4 --bits 4
  qwen25vl convert ./qwen2.5-vl-7b-Q4_K_M.gguf ./7b --to int4
  qwen25vl bench --random 3b --quantize int4

Without -m a small built-in model answers. It knows only drawn scenes, short words and clips.
"""


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


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="qwen25vl",
        description="Ask Qwen2.5-VL about pictures, videos and documents.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qwen25vl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for add_command in (add_run, add_chat, add_info, add_bench, add_quantize, add_convert):
        add_command(commands).allow_abbrev = False
    return parser


def add_run(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "run", help="ask one question", description="Ask one question; the answer is streamed."
    )
    question = parser.add_argument("question", help="the question; - reads it from standard input")
    question.required = False  # -i may have taken it: see checks.find_question
    add_media_options(parser)
    parser.add_argument(
        "--json", action="store_true", help="print text, usage, sizes, timings and boxes as JSON"
    )
    drawing = "save the last picture with the answer's boxes and points on it"
    parser.add_argument("--draw", metavar="FILE", help=drawing)
    add_model_options(parser)
    add_answer_options(parser)
    parser.set_defaults(command=command("run"))
    return parser


def add_chat(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "chat",
        help="hold a conversation",
        description="Hold a conversation. Type /help for its commands.",
    )
    add_media_options(parser)
    add_model_options(parser)
    add_answer_options(parser)
    parser.set_defaults(command=command("chat"), question="-")
    return parser


def add_info(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "info",
        help="show parameters, memory, and the cost of inputs",
        description=(
            "Show a checkpoint's size and memory, and the cost of each input. Reads no weights."
        ),
    )
    words = (
        "checkpoint folder or hub name (default: the built-in model; or use -m), then a question "
        "to count too"
    )
    parser.add_argument("words", nargs="*", metavar="MODEL QUESTION", help=words)
    add_media_options(parser)
    add_model_options(parser)
    parser.set_defaults(command=command("info"))
    return parser


def add_bench(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "bench",
        help="measure this machine and each stage of an answer",
        description=(
            "Measure this machine's limits and the speed of each stage of an answer. Close other "
            "programs first."
        ),
    )
    picture = "the picture to ask about (default: a drawing of 1024×1024 pixels)"
    parser.add_argument(
        "-i", "--image", action="append", default=[], metavar="PICTURE", help=picture
    )
    sizes = ("3b", "7b", "32b", "72b")
    parser.add_argument("--random", choices=sizes, help="random weights of a released model's size")
    median = "runs of each stage; the median is shown (default: 3)"
    parser.add_argument("--runs", type=int, default=3, metavar="N", help=median)
    parser.add_argument("--threads", type=int, metavar="N", help="number of threads")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    add_model_options(parser)
    parser.set_defaults(command=command("bench"), video=[], fps=None)
    parser.set_defaults(min_pixels=None, max_pixels=None, max_decoded_pixels=None)
    return parser


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
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, … (default: cpu)")
    add_hub_options(parser)


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
