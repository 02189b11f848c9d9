"""Kept prefixes: what may be reused and what must not, and how much is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.demo import FOLDER
from qwen25vl.engine.medium import Medium
from qwen25vl.engine.prefix import PrefixCache, common_prefix, prefix_key, weights_state
from qwen25vl.errors import UsageError
from qwen25vl.kernels import library
from qwen25vl.model.cache import KVCache
from qwen25vl.model.layers import has_compiled_layers

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
TEXT = Qwen2_5_VLConfig.from_pretrained(FOLDER).text_config


@pytest.fixture
def vlm() -> VisionLanguageModel:
    vlm = qwen25vl.load()
    if not has_compiled_layers(vlm.model.dtype, vlm.model.device):
        pytest.skip(f"prefixes are kept with kernels only, not with {library.describe()}")
    return vlm


def picture(seed: int) -> Image.Image:
    numbers = np.random.default_rng(seed).integers(0, 256, (84, 112, 3), dtype=np.uint8)
    return Image.fromarray(numbers)


def cached(vlm: VisionLanguageModel, *question: Any, **options: Any) -> int:
    """Tokens that a question did not have to read, after checking its answer without any cache."""
    answer = vlm.ask(*question, max_new_tokens=6, **options)
    plain = VisionLanguageModel(vlm.model, vlm.processor)
    assert plain.ask(*question, max_new_tokens=6, **options).text == answer.text
    return answer.usage.cached_tokens


def store(tokens: int) -> KVCache:
    cache = KVCache(TEXT, torch.bfloat16, capacity=tokens)
    cache.length = tokens
    return cache


def test_each_turn_reads_what_is_new(vlm: VisionLanguageModel) -> None:
    """The whole conversation was read again at every turn: the tenth cost ten times the first."""
    chat = vlm.chat()
    chat.ask("Describe the picture.", [SCENE])
    for question in ("What is red?", "What is large?", "How many things are there?"):
        stream = chat.stream(question)
        for _ in stream:
            pass
        usage = stream.answer.usage
        assert usage.prompt_tokens - usage.cached_tokens <= 20
        assert usage.cached_tokens > 0


def test_a_second_question_about_the_same_picture(vlm: VisionLanguageModel) -> None:
    """By content, not by name; another picture of the same size shares the words before it only."""
    same = picture(1).copy()
    visual_tokens = 84 * 112 // 28**2
    assert cached(vlm, "What is this?", [picture(1)]) == 0
    assert cached(vlm, "Is it red?", [same]) > visual_tokens
    assert cached(vlm, "Is it red?", [picture(2)]) < visual_tokens
    assert cached(vlm, "Is it red?", [same], min_pixels=28 * 28 * 200) < visual_tokens


def test_a_cut_answer_is_kept_too(vlm: VisionLanguageModel) -> None:
    """Whoever stops an answer asks again at once."""
    stream = vlm.stream("Describe the picture.", [SCENE])
    next(stream)
    stream.close()
    del stream
    assert cached(vlm, "Describe the picture.", [SCENE]) > 60


def test_other_weights_and_hooks_share_nothing(vlm: VisionLanguageModel) -> None:
    """A step of training, a hook (an adapter, an analysis) or a replaced layer changes the keys and
    values."""
    layer = vlm.model.model.language_model.layers[0]
    question = ("Describe the picture.", [SCENE])
    cached(vlm, *question)
    assert cached(vlm, *question) > 0
    with torch.no_grad():
        layer.input_layernorm.weight *= 1.5
    vlm.visual_cache = None
    assert cached(vlm, *question) == 0
    handle = layer.register_forward_hook(lambda *_: None)
    assert cached(vlm, *question) == 0
    handle.remove()
    assert cached(vlm, *question) > 0
    layer.mlp.down_proj = torch.nn.Linear(
        layer.mlp.down_proj.in_features, layer.mlp.down_proj.out_features, bias=False
    ).bfloat16()
    assert cached(vlm, *question) == 0
    layer.mlp.forward = lambda x: x
    assert weights_state(vlm.model) is None


def test_sampled_answers_keep_their_draws(vlm: VisionLanguageModel) -> None:
    options = {"temperature": 1.5, "seed": 4, "max_new_tokens": 20}
    first = vlm.ask("Describe the picture.", [SCENE], **options)
    again = vlm.ask("Describe the picture.", [SCENE], **options)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert again.text == first.text


def test_only_on_request_where_bits_would_differ() -> None:
    """In float32 torch's products depend on the number of rows."""
    vlm = qwen25vl.load(dtype="float32")
    vlm.ask("What is red?", [SCENE], max_new_tokens=2)
    assert vlm.ask("What is red?", [SCENE], max_new_tokens=2).usage.cached_tokens == 0
    with pytest.warns(UserWarning, match="may change the last bits"):
        vlm = qwen25vl.load(dtype="float32", prefix_cache_bytes=2**20)
    vlm.ask("What is red?", [SCENE], max_new_tokens=2)
    assert vlm.ask("What is red?", [SCENE], max_new_tokens=2).usage.cached_tokens > 0
    with pytest.raises(UsageError, match="prefix_cache_bytes is -1"):
        qwen25vl.load(prefix_cache_bytes=-1)


def test_the_longest_common_prefix() -> None:
    """The longest of several, cut at any token, and never the last token of the prompt."""
    cache = PrefixCache(2**24)
    ids = np.arange(100)
    cache.keep(ids[:40], store(40), "w")
    cache.keep(np.concatenate([ids[:60], [7]]), store(61), "w")
    cache.keep(np.concatenate([[5], ids]), store(101), "w")
    for length, wanted in ((100, 60), (61, 60), (60, 59), (30, 29)):
        found = cache.find(ids[:length], "w")
        assert found is not None
        assert found[1] == wanted
    assert cache.find(ids[:100], "other weights") is None
    assert cache.find(ids[:16], "w") is None  # not worth a copy
    assert cache.find(np.array([5, 6]), "w") is None


def test_it_is_bounded_by_what_is_stored() -> None:
    """The least recently used goes first; a longer one replaces its own beginning; the room that an
    answer did not use does not count."""
    token = store(1).storage.nbytes
    cache = PrefixCache(100 * token)
    keys = [np.arange(start, start + 40) for start in (0, 1000, 2000)]
    roomy = KVCache(TEXT, torch.bfloat16, capacity=400)
    roomy.length = 40
    cache.keep(keys[0], roomy, "w")
    cache.keep(keys[1], store(40), "w")
    assert cache.num_bytes == 80 * token
    assert cache.find(keys[0], "w") is not None
    cache.keep(keys[2], store(40), "w")
    assert [kept.key[0] for kept in cache.kept] == [0, 2000]
    longer = np.concatenate([keys[0], [1, 2]])
    cache.keep(longer, store(42), "w")
    assert [len(kept.key) for kept in cache.kept] == [40, 42]
    cache.keep(keys[0], store(40), "w")  # a beginning of what is there
    assert [len(kept.key) for kept in cache.kept] == [40, 42]
    cache.keep(keys[1], store(40), "new weights")  # the others can never be used again
    assert len(cache.kept) == 1
    cache.release(1)
    assert not cache.kept
    nothing = PrefixCache(0)
    nothing.keep(keys[0], store(40), "w")
    assert not nothing.kept


def test_keys_tell_media_apart() -> None:
    """All visual tokens have one id: pictures with equal sizes had equal keys (in other engines for
    years). Where a medium stands counts too, and a slot token that the model wrote is text."""
    patches = [torch.randn(16, 1176) for _ in range(2)]

    def key(*contents: Any) -> np.ndarray:
        media = [
            Medium("image", (1, 4, 4), 2 + 4 * i, 6 + 4 * i, [content])
            for i, content in enumerate(contents)
        ]
        return prefix_key([1, 2, *[9] * 4 * len(contents), 3], media)

    assert (key(patches[0]) == key(patches[0].clone())).all()
    assert common_prefix(key(patches[0]), key(patches[1])) == 2
    assert common_prefix(key(*patches), key(*patches[::-1])) == 2
    assert common_prefix(key(patches[0], patches[0]), key(*patches)) == 6
    assert len(set(key(patches[0], patches[0]).tolist())) == 3 + 4
    assert common_prefix(key(patches[0]), prefix_key([1, 2, 9, 9, 9, 9, 3], [])) == 2
    clip = Medium("video", (1, 4, 4), 2, 6, [patches[0]], 0.5)
    slow = Medium("video", (1, 4, 4), 2, 6, [patches[0]], 1.0)
    assert (
        common_prefix(
            prefix_key([1, 2, 9, 9, 9, 9], [clip]), prefix_key([1, 2, 9, 9, 9, 9], [slow])
        )
        == 2
    )


def test_a_known_picture_is_not_prepared_again(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting patches took most of the time that was left of a second question. Where the encoder
    needs them after all, they are there."""
    from qwen25vl.processing import prepare

    cuts: list[Any] = []
    patchify = prepare.patchify
    monkeypatch.setattr(prepare, "patchify", lambda *a: cuts.append(a) or patchify(*a))
    first = vlm.ask("What is this?", [picture(1)], max_new_tokens=5)
    again = vlm.ask("What is this?", [picture(1)], max_new_tokens=5)
    assert len(cuts) == 1
    assert again.text == first.text
    vlm.ask("What is this?", [picture(1)], min_pixels=28 * 28 * 200, max_new_tokens=5)
    assert len(cuts) == 2
    stream = vlm.stream("What is this?", [picture(1)], max_new_tokens=5)
    assert vlm.visual_cache is not None
    assert vlm.prefix_cache is not None
    vlm.visual_cache.clear()
    vlm.prefix_cache.clear()
    for _ in stream:
        pass
    assert len(cuts) == 3
    assert stream.text == first.text
