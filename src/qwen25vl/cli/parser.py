"""The command line's syntax: commands, options and help texts."""

from __future__ import annotations

import argparse

from qwen25vl import __version__
from qwen25vl.cli.batch_options import add_batch
from qwen25vl.cli.options import (
    add_adapter_option,
    add_answer_options,
    add_media_options,
    add_model_options,
)
from qwen25vl.cli.serve_options import add_serve
from qwen25vl.cli.syntax import Commands, Parser, command
from qwen25vl.cli.writing import add_convert, add_merge, add_quantize

EXAMPLES = """\
examples:
  qwen25vl run "What is in this picture?" -i photo.jpg
  qwen25vl run "What differs?" -i *.png
  qwen25vl run "Find every cup. Answer in JSON." -i table.jpg --draw cups.png -m ./my-checkpoint
  qwen25vl run "What happens?" -v clip.mp4 --fps 1 --quantize int4 -m Qwen/Qwen2.5-VL-3B-Instruct
  cat scan.png | qwen25vl run "Read the text." -i - --json
  qwen25vl chat -i photo.jpg
  qwen25vl serve -m Qwen/Qwen2.5-VL-3B-Instruct --quantize int4
  qwen25vl batch invoices/ --task invoice -o invoices.jsonl
  qwen25vl info ./my-checkpoint -i photo.jpg -v clip.mp4
  qwen25vl quantize Qwen/Qwen2.5-VL-3B-Instruct ./3b-int4 --bits 4
  qwen25vl convert ./qwen2.5-vl-7b-Q4_K_M.gguf ./7b --to int4
  qwen25vl bench --random 3b --quantize int4

Without -m a small built-in model answers. It knows only drawn scenes, short words and clips.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="qwen25vl",
        description="Ask Qwen2.5-VL about pictures, videos and documents.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qwen25vl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    commands_in_order = (
        add_run,
        add_chat,
        add_serve,
        add_batch,
        add_info,
        add_bench,
        add_quantize,
        add_convert,
        add_merge,
    )
    for add_command in commands_in_order:
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
    schema = "answer in JSON that follows the JSON schema in FILE"
    parser.add_argument("--schema", metavar="FILE", help=schema)
    drawing = "save the last picture with the answer's boxes and points on it"
    parser.add_argument("--draw", metavar="FILE", help=drawing)
    add_model_options(parser)
    add_adapter_option(parser)
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
    add_adapter_option(parser)
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
    url = "measure a running server instead, as its clients see it (key: QWEN25VL_API_KEY)"
    parser.add_argument("--serve", metavar="URL", help=url)
    sizes = ("3b", "7b", "32b", "72b")
    parser.add_argument("--random", choices=sizes, help="random weights of a released model's size")
    median = "runs of each stage; the median is shown (default: 3)"
    parser.add_argument("--runs", type=int, default=3, metavar="N", help=median)
    parser.add_argument("--threads", type=int, metavar="N", help="number of threads")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    add_model_options(parser)
    parser.set_defaults(command=command("bench"), video=[], fps=None, adapter=[])
    parser.set_defaults(min_pixels=None, max_pixels=None, max_decoded_pixels=None)
    return parser
