"""What the routes of one server share: the model, the queue, the media room and the limits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from qwen25vl.engine.outbox import Outbox
from qwen25vl.engine.requests import Call, open_sequences
from qwen25vl.serving.constraints import spared_by_stops
from qwen25vl.serving.errors import BUSY, ApiError, of_error
from qwen25vl.serving.job import Job
from qwen25vl.serving.media.room import MediaRoom
from qwen25vl.serving.metrics import Metrics
from qwen25vl.serving.responses.store import ResponseStore
from qwen25vl.serving.runner import QueueLimits, Runner
from qwen25vl.serving.sampling import Bounds
from qwen25vl.serving.settings import ServerSettings
from qwen25vl.serving.tenant import cache_salt
from qwen25vl.serving.wire import SamplingFields
from qwen25vl.structured.compiler import GrammarCompiler

if TYPE_CHECKING:
    from qwen25vl.engine.additions import Additions
    from qwen25vl.engine.options import GenerationConfig
    from qwen25vl.engine.sequence import Sequence
    from qwen25vl.inputs import ModelInputs
    from qwen25vl.vlm import VisionLanguageModel

T = TypeVar("T")
BASE = "__base__"  # the name of the model without an adapter
log = logging.getLogger("qwen25vl.serving")


@dataclass
class Service:
    """num_open: requests that came in and are not answered yet. is_draining: no new ones are taken.
    is_live: whether somebody waits for single tokens, not only for whole answers. keeps_prompts:
    for later ones that begin alike. created: seconds since 1970, what /v1/models says."""

    vlm: VisionLanguageModel
    settings: ServerSettings
    runner: Runner
    media: MediaRoom
    metrics: Metrics
    responses: ResponseStore
    num_open: int = 0
    is_ready: bool = False
    is_draining: bool = False
    is_live: bool = True
    keeps_prompts: bool = True
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, vlm: VisionLanguageModel, settings: ServerSettings) -> Service:
        engine = vlm.model.engine
        engine.scheduler.max_bytes = settings.memory_bytes
        context = vlm.model.config.text_config.max_position_embeddings
        tokens = settings.max_queued_tokens or 4 * (settings.max_model_len or context)
        limits = QueueLimits(settings.max_num_seqs, tokens, settings.max_queued_patches)
        runner = Runner(engine, limits)
        media = MediaRoom(settings.media, vlm.processor, vlm.model.dtype)
        metrics = Metrics(settings.model_names[0], runner, vlm)
        runner.on_over.append(metrics.count_job)
        responses = ResponseStore(
            settings.max_stored_responses, settings.max_stored_bytes, settings.stored_seconds
        )
        return cls(vlm, settings, runner, media, metrics, responses)

    async def start(self) -> None:
        """Begin to serve; ready once a first question about a picture is answered."""
        from qwen25vl.serving.warm_up import warm_up

        self.runner.start()
        await self.media.start()
        if self.is_live:
            await asyncio.to_thread(self.open_compiler)
        await warm_up(self)
        self.is_ready = True

    async def close(self) -> None:
        await self.media.close()
        await self.runner.stop()

    def open_compiler(self) -> None:
        """Read the vocabulary now: it takes a second, which no request should wait for."""
        if self.vlm.grammars is None:
            self.vlm.grammars = GrammarCompiler(self.vlm.processor.tokenizer)
        _ = self.vlm.grammars.vocabulary

    @property
    def compiler(self) -> GrammarCompiler:
        if self.vlm.grammars is None:
            self.open_compiler()
        assert self.vlm.grammars is not None
        return self.vlm.grammars

    @property
    def max_model_len(self) -> int:
        context: int = self.vlm.model.config.text_config.max_position_embeddings
        return min(context, self.settings.max_model_len or context)

    @property
    def bounds(self) -> Bounds:
        settings = self.settings
        return Bounds(self.max_model_len, settings.default_max_tokens, settings.max_answers)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of what takes about a millisecond. Beside streams it must not hold the loop;
        where nobody waits for single tokens, a thread would only cost more."""
        if self.is_live:
            return await asyncio.to_thread(function, *arguments)
        return function(*arguments)

    def enter(self) -> None:
        """Count a request in, or refuse it: while the server ends, and while too many wait."""
        if self.is_draining or not self.is_ready:
            state = "shutting down" if self.is_draining else "loading the model"
            raise ApiError(
                503, f"The server is {state}.", kind="server_error", code="unavailable",
                retry_after=5,
            )  # fmt: skip
        allowed = self.settings.max_num_seqs + self.settings.max_queued_requests
        if self.num_open >= allowed:
            wait = self.runner.rates.retry_seconds(self.runner.active, self.runner.waiting)
            message = f"The server is busy with {self.num_open} requests; try again later."
            raise ApiError(429, message, kind=BUSY, code="queue_full", retry_after=wait)
        self.num_open += 1

    def leave(self) -> None:
        self.num_open -= 1

    def find_adapter(self, name: str | None) -> str | None:
        """The adapter that a request's `model` names, None for the one in force. Raises ApiError
        for a name that is neither an adapter's nor the model's."""
        adapters = self.vlm.model.adapters.loaded
        if name in adapters:
            return name
        names = self.settings.model_names
        if self.settings.any_model_name or not name or name == "default" or name in names:
            return BASE if adapters else None
        known = ", ".join([*names, *adapters])
        raise ApiError(
            404,
            f"The model `{name[:100]}` does not exist; this server has {known}.",
            param="model",
            code="model_not_found",
        )

    def report(self, error: Exception) -> None:
        """Count a refusal, and write down what is the server's fault. Of requests, the log has no
        content."""
        told = of_error(error)
        if told.status in (429, 503):
            self.metrics.count_refusal(told.code or "unavailable")
        if told.status == 500 and not isinstance(error, ApiError):
            log.error("a request failed", exc_info=error)

    async def submit(
        self,
        request: SamplingFields,
        inputs: ModelInputs,
        options: GenerationConfig,
        added: Additions,
        num_likeliest: int,
        client_seconds: float | None,
    ) -> Job:
        """Make sequences of a prompt that is ready, and queue them. client_seconds: after which the
        client gives up; what cannot be begun by then is refused."""
        adapter = self.find_adapter(request.model)
        adapted = self.vlm.model.adapters.find_each(self.vlm.model, adapter, 1)
        outbox = Outbox(is_live=self.is_live, num_likeliest=num_likeliest)
        visual_cache, prefix_cache = None, None
        if self.keeps_prompts:
            visual_cache, prefix_cache = self.vlm.visual_cache, self.vlm.prefix_cache
        call = Call(
            options, outbox, self.vlm.processor.tokenizer, visual_cache, prefix_cache, added,
            salt=cache_salt(request.cache_salt),
            shows_special=request.skip_special_tokens is False,
            shows_stop=bool(request.include_stop_str_in_output),
            spared=spared_by_stops(request, self.vlm.processor.tokenizer), adapted=adapted,
            num_prompt_likeliest=request.num_prompt_likeliest,
        )  # fmt: skip
        num_tokens = int(inputs.input_ids.shape[-1])
        num_patches = sum(4 * item.num_tokens for item in inputs.media)
        self.check_deadline(client_seconds, num_tokens, num_patches)
        model = self.vlm.model

        def open_call() -> list[Sequence]:
            with torch.inference_mode():
                return open_sequences(model, inputs.to(model.device), call)

        sequences = await self.in_thread(open_call)
        job = Job(outbox, sequences, num_tokens, num_patches, request.priority or 0)
        outbox.progress = job.report
        self.runner.submit(job)
        return job

    def check_deadline(self, seconds: float | None, num_tokens: int, num_patches: int) -> None:
        """Raise a 429 for a request whose client will be gone before its first token."""
        if seconds is None:
            return
        runner = self.runner
        needed = runner.rates.first_token_seconds(num_tokens, num_patches)
        if runner.waiting:
            needed += runner.rates.queue_seconds(runner.active, runner.waiting)
        if needed > seconds:
            raise ApiError(
                429,
                f"The first token would take about {needed:.0f} s, more than the client's timeout "
                f"of {seconds:.0f} s; send smaller pictures, stream, or try again later.",
                kind=BUSY,
                code="deadline",
                retry_after=runner.rates.retry_seconds(runner.active, runner.waiting),
            )
