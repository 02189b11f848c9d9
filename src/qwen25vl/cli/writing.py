"""The syntax of the commands that write a checkpoint."""

from __future__ import annotations

from qwen25vl.cli.syntax import Commands, Parser, add_hub_options, command


def add_quantize(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "quantize",
        help="convert a checkpoint to 8 or 4 bits",
        description=(
            "Write a checkpoint in 8 or 4 bits to a new folder, which then loads without "
            "quantising."
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder or hub name")
    add_target(parser)
    parser.add_argument("--bits", type=int, choices=(4, 8), required=True, help="bits per weight")
    parser.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="weights per scale: 32, 64 or 128 (default: 128)",
    )
    parser.add_argument(
        "--vision", action="store_true", help="quantise the vision encoder's blocks too, to 8 bits"
    )
    add_hub_options(parser)
    parser.set_defaults(command=command("quantize"))
    return parser


def add_convert(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint of another format as a folder, or as GGUF",
        description=(
            "Write a GGUF file, a quantised folder of another program or any other checkpoint to a "
            "new folder. Weights that are read as they are stored keep their numbers; the rest "
            "becomes bfloat16. Where OUT ends with .gguf, write GGUF for llama.cpp: OUT, and the "
            "vision encoder as mmproj-OUT beside it."
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="file, folder, hub name or Ollama's name")
    add_target(parser)
    kinds = ("bfloat16", "float16", "float32", "int8", "int4", "int8+vision", "int4+vision",
             "q4_0", "q8_0")  # fmt: skip
    parser.add_argument(
        "--to",
        choices=kinds,
        metavar="KIND",
        help=(
            "bfloat16, float16 or float32: all weights, also those that could be kept; int8 or "
            "int4: quantise what cannot be kept, +vision the vision encoder's blocks too; "
            "q4_0 or q8_0: of GGUF"
        ),
    )
    parser.add_argument(
        "--mmproj",
        choices=("float16", "bfloat16", "float32"),
        metavar="KIND",
        help="of GGUF, the vision encoder: float16, bfloat16 or float32 (default: that of --to, or "
        "bfloat16)",
    )
    parser.add_argument(
        "--group-size", type=int, metavar="N", help="of int4, weights per scale (default: 128)"
    )
    add_hub_options(parser)
    parser.set_defaults(command=command("convert"))
    return parser


def add_merge(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "merge",
        help="write a LoRA adapter and its base as one checkpoint",
        description="Merge a LoRA adapter into its base and write the result to a new folder.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or hub name of the adapter")
    add_target(parser)
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="the base: checkpoint folder or hub name (default: the one that the adapter names)",
    )
    parser.add_argument(
        "--offline", action="store_true", help="use local files only, never the network"
    )
    parser.set_defaults(command=command("merge"))
    return parser


def add_target(parser: Parser) -> None:
    """The folder that is written."""
    parser.add_argument(
        "folder", metavar="OUT", help="new folder; it appears only when it is complete"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace an existing checkpoint in OUT"
    )
