"""The options of `qwen25vl batch`."""

from __future__ import annotations

import argparse

from qwen25vl.cli.options import add_adapter_option, add_answer_options, add_model_options
from qwen25vl.cli.syntax import Commands, Parser, command

TASKS = ("ocr", "markdown", "html", "tables", "invoice", "caption", "detect")
EXAMPLES = """\
examples:
  qwen25vl batch invoices/ --task invoice -o invoices.jsonl -m Qwen/Qwen2.5-VL-3B-Instruct
  qwen25vl batch report.pdf --task markdown --markdown text/ -o report.jsonl
  qwen25vl batch 'scans/**/*.png' --ask "Is this page signed?" -o signed.jsonl
  qwen25vl batch requests.jsonl -o answers.jsonl --server http://10.0.0.5:8000 http://10.0.0.6:8000
  qwen25vl batch invoices/ --task invoice -o invoices.jsonl --resume

exit codes: 0 every input has its answer, 3 some have none (their lines say why), 2 a wrong call,
1 the job could not go on, 130 Ctrl-C; after the last two, --resume goes on.
"""


def add_batch(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "batch",
        help="ask about many pictures and documents",
        description=(
            "Ask about each picture and each page of many files. Each answer is a line of OUT, "
            "written once; an input that fails does not stop the others."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inputs = (
        "pictures, PDF documents, folders, patterns, a JSONL of messages, a batch file of OpenAI's "
        "kind, or a parquet file with a column of pictures"
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    add_questions(parser)
    add_output(parser)
    add_work(parser)
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--min-pixels", type=int, metavar="N", help="enlarge pictures to at least this area"
    )
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help="shrink pictures to at most this area"
    )
    group.add_argument(
        "--max-decoded-pixels", type=int, metavar="N",
        help="refuse larger pictures (default: 178956970)",
    )  # fmt: skip
    domains = "hosts from which pictures named by an address are fetched (default: none)"
    group.add_argument(
        "--allowed-media-domains", nargs="+", default=[], metavar="HOST", help=domains
    )
    group.add_argument("--password", metavar="TEXT", help="of encrypted PDF documents")
    add_model_options(parser)
    add_adapter_option(parser)
    add_answer_options(parser)
    parser.set_defaults(command=command("batch"))
    return parser


def add_questions(parser: Parser) -> None:
    group = parser.add_argument_group("what to ask")
    group.add_argument("--ask", metavar="TEXT", help="the question about each page")
    several = "a file with a question a line, or a JSON object of names and questions"
    group.add_argument("--prompts", metavar="FILE", help=several)
    words = f"one that the model was trained for: {', '.join(TASKS)}"
    group.add_argument("--task", choices=TASKS, metavar="TASK", help=words)
    group.add_argument(
        "--schema", metavar="FILE", help="a JSON schema that every answer has to follow"
    )
    each = "each: a request for each page (default); all: one for all pages of a file"
    group.add_argument("--pages", choices=("each", "all"), default="each", help=each)
    group.add_argument(
        "--column", metavar="NAME", help="the column of a parquet file (default: image)"
    )


def add_output(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="the JSONL file to write"
    )
    group.add_argument(
        "--resume", action="store_true", help="go on with OUT: skip what it has already"
    )
    group.add_argument(
        "--retry-failed", action="store_true", help="with --resume, ask again what has failed"
    )
    order = "at the end: key, the order of the inputs (default), or finished, as they came"
    group.add_argument("--order", choices=("key", "finished"), default="key", help=order)
    group.add_argument(
        "--group", choices=("file",), help="one line for each file, with its pages inside"
    )
    group.add_argument(
        "--markdown", metavar="DIR", help="also write a .md of each document's answers"
    )
    group.add_argument("--summary", metavar="FILE", help="write the final counts as JSON")


def add_work(parser: Parser) -> None:
    group = parser.add_argument_group("work")
    group.add_argument(
        "--max-attempts", type=int, default=3, metavar="N",
        help="tries of an input, the last one alone (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-in-flight",
        type=int,
        metavar="N",
        help="requests at once (default: 64, and 16 for each server)",
    )
    copies = "copies of a small model in processes of their own, which share the processors"
    group.add_argument("--replicas", type=int, default=1, metavar="N", help=copies)
    group.add_argument(
        "--window", default="1GiB", metavar="SIZE",
        help="memory for pictures that are under way (%(default)s)",
    )  # fmt: skip
    group.add_argument("--deadline", type=float, metavar="S", help="seconds for a page")
    servers = "let running servers answer (key: QWEN25VL_API_KEY); -m is the model's name there"
    group.add_argument("--server", nargs="+", default=[], metavar="URL", help=servers)
