"""llama.cpp through the low-level calls of its bindings. Job: llama (GGUF of the text model),
new_tokens, threads, prompt_tokens. Text alone: its picture encoder is several times slower than all
others and has a file of its own."""

from typing import Any

import llama_cpp
from protocol import Run, serve, timed


def open_engine(job: dict[str, Any]) -> Run:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        job["llama"].encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    num_tokens, num_steps = job["prompt_tokens"], job["new_tokens"] - 1
    params.n_ctx, params.n_batch = num_tokens + num_steps + 64, num_tokens
    params.n_threads = params.n_threads_batch = job["threads"]
    context = llama_cpp.llama_init_from_model(model, params)

    def read(tokens: list[int]) -> None:
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(tokens))):
            raise RuntimeError("llama_decode failed")

    def run() -> dict[str, float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        prefill, _ = timed(lambda: read([1000 + i % 500 for i in range(num_tokens)]))
        decode, _ = timed(lambda: [read([1000 + i]) for i in range(num_steps)])
        return {"prefill": prefill, "decode": decode / num_steps}

    return run


if __name__ == "__main__":
    serve(open_engine)
