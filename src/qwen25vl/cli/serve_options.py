"""The options of `qwen25vl serve`, under the names that users of other servers know."""

from __future__ import annotations

import argparse

from qwen25vl.cli.options import add_adapter_option, add_model_options
from qwen25vl.cli.syntax import Commands, Parser, command

EXAMPLES = """\
examples:
  qwen25vl serve                                      # the built-in model, on http://127.0.0.1:8000
  qwen25vl serve -m Qwen/Qwen2.5-VL-3B-Instruct --quantize int4
  qwen25vl serve -m ./3b-int4 --host 0.0.0.0 --api-key-file keys.txt
"""


def add_serve(commands: Commands) -> Parser:
    parser = commands.add_parser(
        "serve",
        help="answer over HTTP, as OpenAI's API does, and show a page to chat on",
        description="Serve a model over OpenAI's HTTP API, with a page to chat on at /.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_network(parser)
    add_limits(parser)
    add_media(parser)
    add_model_options(parser)
    add_adapter_option(parser)
    parser.set_defaults(command=command("serve"), min_pixels=None)
    return parser


def add_network(parser: Parser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    group.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    group.add_argument("--uds", metavar="PATH", help="listen on a Unix socket instead")
    key = "a key that clients must send; the option may be repeated (or QWEN25VL_API_KEY)"
    group.add_argument("--api-key", action="append", default=[], metavar="KEY", help=key)
    group.add_argument("--api-key-file", metavar="FILE", help="a file with one key a line")
    without = "listen beyond this machine although no key is set"
    group.add_argument("--no-api-key", action="store_true", help=without)
    names = "names that clients may use for the model (default: its folder's or hub name)"
    group.add_argument("--served-model-name", nargs="+", default=[], metavar="NAME", help=names)
    group.add_argument(
        "--any-model-name", action="store_true", help="answer whatever model a request names"
    )
    hosts = "host names that a request may be addressed to, beside the loopback's"
    group.add_argument("--allowed-hosts", nargs="+", default=[], metavar="NAME", help=hosts)
    origins = "web pages elsewhere that may use this server, as https://example.org"
    group.add_argument("--allowed-origins", nargs="+", default=[], metavar="ORIGIN", help=origins)
    group.add_argument("--ssl-keyfile", metavar="FILE", help="private key for HTTPS")
    group.add_argument("--ssl-certfile", metavar="FILE", help="certificate for HTTPS")
    group.add_argument("--root-path", default="", help="path under which a proxy shows the server")
    group.add_argument("--no-page", action="store_true", help="serve the API only, not the page")
    group.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"),
        help="what the log shows (%(default)s); never the content of requests",
    )  # fmt: skip


def add_limits(parser: Parser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-model-len", type=int, metavar="N", help="tokens of a prompt with its answer"
    )
    longest = "tokens of an answer whose request names no length (%(default)s)"
    group.add_argument("--default-max-tokens", type=int, default=4096, metavar="N", help=longest)
    room = "memory for running requests and kept prefixes (default: what is free)"
    group.add_argument("--memory", metavar="SIZE", help=f"{room}, as 8GB")
    prefixes = "memory for the keys and values of finished requests, 0 keeps none (512MiB)"
    group.add_argument("--prefix-cache", metavar="SIZE", help=prefixes)
    visual = "memory for the visual tokens of pictures, 0 keeps none (256MiB)"
    group.add_argument("--visual-cache", metavar="SIZE", help=visual)
    group.add_argument(
        "--max-num-seqs", type=int, default=32, metavar="N",
        help="answers that are written at once (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-num-queued-reqs", type=int, default=64, metavar="N",
        help="requests that may wait; more are refused with 429 (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-num-queued-tokens", type=int, metavar="N", help="tokens of these together"
    )
    stored = "responses of /v1/responses kept in memory for a day (%(default)s); 0 keeps none"
    group.add_argument("--max-stored-responses", type=int, default=1000, metavar="N", help=stored)
    group.add_argument(
        "--max-body", default="128MiB", metavar="SIZE", help="of a request (%(default)s)"
    )
    group.add_argument(
        "--sse-keep-alive-interval", type=float, default=10.0, metavar="S",
        help="seconds between two lines of a stream (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--shutdown-timeout", type=float, default=30.0, metavar="S",
        help="seconds for running requests after SIGTERM (%(default)s)",
    )  # fmt: skip


def add_media(parser: Parser) -> None:
    group = parser.add_argument_group("pictures and videos")
    limits = "how many of a kind a request may have (default: image=16,video=2)"
    group.add_argument("--limit-mm-per-prompt", metavar="image=8,video=1", help=limits)
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help="shrink pictures to at most this area"
    )
    group.add_argument(
        "--max-decoded-pixels", type=int, metavar="N",
        help="refuse larger pictures (default: 50000000)",
    )  # fmt: skip
    domains = "hosts from which pictures named by an address are fetched (default: none)"
    group.add_argument(
        "--allowed-media-domains", nargs="+", default=[], metavar="HOST", help=domains
    )
    group.add_argument(
        "--allowed-local-media-path", metavar="FOLDER",
        help="the folder whose files file:// addresses may name (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--media-workers", type=int, metavar="N", help="processes that decode (default: 2)"
    )
