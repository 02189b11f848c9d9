"""Counters and histograms for Prometheus, under the names that vLLM's dashboards know.

No label takes a value that a client chooses.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from qwen25vl.serving.generation import Generation
    from qwen25vl.serving.job import Job
    from qwen25vl.serving.runner import Runner
    from qwen25vl.vlm import VisionLanguageModel

FIRST_TOKEN = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640, 2560)
WHOLE = (0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1920, 7680)
BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 10, 40)
TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)


class Metrics:
    """Those of one server; its own registry, so that several may live in one process."""

    def __init__(self, model_name: str, runner: Runner, vlm: VisionLanguageModel) -> None:
        self.registry = CollectorRegistry()
        self.model_name = model_name
        self.runner = runner
        running = self.gauge("num_requests_running", "Requests at the engine.")
        running.set_function(lambda: len(runner.active))
        waiting = self.gauge("num_requests_waiting", "Requests in the queue.")
        waiting.set_function(lambda: len(runner.waiting))
        kept = vlm.prefix_cache
        cache = self.gauge("prefix_cache_bytes", "Memory of kept keys and values.")
        cache.set_function(lambda: kept.num_bytes if kept is not None else 0)
        self.prompt_tokens = self.counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = self.counter("prefix_cache_hits", "Of these, found in kept caches.")
        self.queried_tokens = self.counter("prefix_cache_queries", "Tokens looked for there.")
        self.written_tokens = self.counter("generation_tokens", "Tokens of answers.")
        self.patches = self.counter("patches_encoded", "Patches of pictures and clips.")
        self.finished = self.counter("request_success", "Answers by their end.", "finished_reason")
        self.cancelled = self.counter("requests_cancelled", "Requests whose client left.")
        self.failed = self.counter("requests_failed", "Requests that failed in the engine.")
        self.refused = self.counter("admission_rejections", "Requests refused.", "reason")
        self.first = self.histogram("time_to_first_token_seconds", FIRST_TOKEN)
        self.whole = self.histogram("e2e_request_latency_seconds", WHOLE)
        self.queued = self.histogram("request_queue_time_seconds", WHOLE)
        self.prefill = self.histogram("request_prefill_time_seconds", WHOLE)
        self.decode = self.histogram("request_decode_time_seconds", WHOLE)
        self.each = self.histogram("request_time_per_output_token_seconds", BETWEEN)
        self.read = self.histogram("request_prompt_tokens", TOKENS)
        self.written = self.histogram("request_generation_tokens", TOKENS)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        names = ("model_name", *labels)
        made = Counter(f"vllm:{name}", text, names, registry=self.registry)
        return made if labels else made.labels(self.model_name)

    def gauge(self, name: str, text: str) -> Gauge:
        made = Gauge(f"vllm:{name}", text, ("model_name",), registry=self.registry)
        return made.labels(self.model_name)

    def histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        text = f"Distribution of {name.replace('_', ' ')}."
        made = Histogram(
            f"vllm:{name}", text, ("model_name",), buckets=buckets, registry=self.registry
        )
        return made.labels(self.model_name)

    def count_refusal(self, reason: str) -> None:
        self.refused.labels(self.model_name, reason).inc()

    def count_job(self, job: Job) -> None:
        """A request that left the engine."""
        now = time.monotonic()
        written = sum(len(sequence.tokens) for sequence in job.sequences)
        timings = job.watch.timings(max(1, written))
        self.prompt_tokens.inc(job.num_tokens)
        self.queried_tokens.inc(job.num_tokens)
        self.cached_tokens.inc(job.num_cached)
        self.written_tokens.inc(written)
        self.patches.inc(job.num_patches)
        self.read.observe(job.num_tokens)
        self.written.observe(written)
        self.whole.observe(now - job.submitted)
        self.prefill.observe(timings.vision + timings.prefill)
        self.decode.observe(timings.decode)
        if job.started is not None:
            self.queued.observe(job.started - job.submitted)
        if job.first is not None:
            self.first.observe(job.first - job.submitted)
            if written > 1:
                self.each.observe((now - job.first) / (written - 1))

    def count_end(self, generation: Generation) -> None:
        """A request that is over: its answers by their ends, or how it went without all of them.
        A refused one never came so far."""
        for answer in generation.answers:
            if answer.end is not None:
                self.finished.labels(self.model_name, answer.end.reason).inc()
        if all(answer.end is not None for answer in generation.answers):
            return
        error = generation.job.outbox.error
        (self.cancelled if error is None else self.failed).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
