"""Several adapters of one model at work: whose numbers a request gets, and in what company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from adapter_files import linear_sizes, low_rank, write_adapter
from instruction_sets import sets_here
from PIL import Image

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.errors import UsageError
from qwen25vl.kernels import library

NAMES = ["words", "eyes", "__base__", "words"]
KINDS = [None, "int8", "int4"]
SIZES = {"words": ("self_attn.q_proj", "mlp.down_proj"), "eyes": ("attn.qkv", "o_proj")}


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 256, (84, 112, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(numbers.numpy())


def question(seed: int) -> list[dict[str, Any]]:
    text = {"type": "text", "text": f"What is in picture {seed}?"}
    return [{"role": "user", "content": [{"type": "image", "image": picture(seed)}, text]}]


def write_both(model: Any, folder: Path) -> dict[str, Path]:
    """One adapter of the language model, and one that changes the vision encoder too."""
    written = {}
    for seed, (name, ends) in enumerate(SIZES.items()):
        sizes = linear_sizes(model, *ends)
        if name == "words":
            sizes = {path: size for path, size in sizes.items() if "visual" not in path}
        tensors = low_rank(sizes, seed=seed)
        written[name] = write_adapter(folder / name, tensors)
    return written


@pytest.fixture(
    scope="module", params=[(isa, kind) for isa in sets_here() for kind in KINDS], ids=str
)
def vlm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VisionLanguageModel]:
    """The built-in model in each precision with two adapters, by the kernels of each instruction
    set that this processor has."""
    isa, kind = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWEN25VL_KERNELS", isa)
        library.choose.cache_clear()
        loaded = qwen25vl.load(quantize=kind)
        for name, folder in write_both(loaded.model, tmp_path_factory.mktemp("a")).items():
            loaded.model.load_adapter(folder, name)
        yield loaded
    library.choose.cache_clear()


def ask(vlm: VisionLanguageModel, chats: list[Any], names: Any, **options: Any) -> Any:
    inputs = vlm.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True
    )
    given = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 6}
    return vlm.model.generate(**inputs, adapter_names=names, **given, **options)


def test_a_row_of_a_batch_is_as_alone(vlm: VisionLanguageModel) -> None:
    """Two adapters and the base in one batch, one question twice under different adapters: each
    row has the logits of its lone run, bit for bit. Rows computed by another row's adapter, or
    visual tokens shared between encoders, would show."""
    chats = [question(0), question(1), question(0), question(2)]
    together = ask(vlm, chats, NAMES)
    for row, (chat, name) in enumerate(zip(chats, NAMES, strict=True)):
        alone = ask(vlm, [chat], name)
        for step, logits in enumerate(alone.logits):
            assert torch.equal(logits[0], together.logits[step][row])
    first = torch.stack([together.logits[0][row] for row in (0, 2)])
    assert (first[0] - first[1]).abs().max() > 0.1


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    """As most users have it: the kernels that serve, and caches."""
    loaded = qwen25vl.load()
    folders = write_both(loaded.model, tmp_path_factory.mktemp("own"))
    return qwen25vl.load(adapter=folders)


def test_draws_do_not_depend_on_company(own: VisionLanguageModel) -> None:
    """Equal prompts of one call draw different numbers, but those under another adapter do not
    count as equal: a row would draw other numbers than alone."""
    how = {"do_sample": True, "temperature": 20.0, "seed": 3, "top_k": 0}
    together = ask(own, [question(0)] * 3, ["words", "eyes", "words"], **how)
    for row, name in enumerate(("words", "eyes")):
        alone = ask(own, [question(0)], name, **how)
        length = alone.sequences.shape[1]
        assert torch.equal(alone.sequences[0], together.sequences[row, :length])
    assert not torch.equal(together.sequences[0], together.sequences[2])


def test_other_ways_of_writing(own: VisionLanguageModel) -> None:
    """Beams, several answers and drafts under an adapter, each beside the base."""
    for options in ({"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True, "seed": 1}):
        both = ask(own, [question(0), question(0)], ["eyes", "__base__"], **options)
        alone = ask(own, [question(0)], "eyes", **options)
        length = alone.sequences.shape[1]
        assert torch.equal(both.sequences[: len(alone.sequences), :length], alone.sequences)
    plain = own.ask("Write abc abc abc.", adapter="words", max_new_tokens=12)
    drafted = own.ask(
        "Write abc abc abc.", adapter="words", max_new_tokens=12, prompt_lookup_num_tokens=4
    )
    assert drafted.text == plain.text


def test_kept_caches_belong_to_their_adapter(own: VisionLanguageModel) -> None:
    """Keys and values of the base under an adapter would be those of another model. Each keeps its
    own, and none pushes the others out."""
    assert own.prefix_cache is not None
    own.prefix_cache.clear()
    first = {}
    for name in ("__base__", "words", "eyes"):
        answer = own.ask("What is this?", images=[picture(5)], adapter=name, max_new_tokens=5)
        assert answer.usage.cached_tokens == 0
        first[name] = answer.text
    assert len(own.prefix_cache.kept) == 3
    for name, text in first.items():
        answer = own.ask("What is this?", images=[picture(5)], adapter=name, max_new_tokens=5)
        assert answer.usage.cached_tokens == answer.usage.prompt_tokens - 1
        assert answer.text == text


def test_visual_tokens_are_shared_where_the_encoder_is(own: VisionLanguageModel) -> None:
    """An adapter of the language model alone sees with the base's encoder; another encoder's visual
    tokens must not serve."""
    assert own.visual_cache is not None
    own.visual_cache.clear()
    for name, number in (("__base__", 1), ("words", 1), ("eyes", 2), ("words", 2)):
        own.ask("What is this?", images=[picture(7)], adapter=name, max_new_tokens=1)
        assert len(own.visual_cache.items) == number


def test_threads_with_adapters_of_their_own(own: VisionLanguageModel) -> None:
    """Their answers are written together, each by its adapter."""
    names = ["words", "eyes", "__base__"]
    expected = {n: own.ask("Go on.", adapter=n, max_new_tokens=12).text for n in names}
    found: dict[str, str] = {}

    def work(name: str) -> None:
        found[name] = own.ask("Go on.", adapter=name, max_new_tokens=12).text

    threads = [Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_who_answers_by_default(own: VisionLanguageModel) -> None:
    """The first that was given; a conversation may have one of its own, and change it."""
    assert own.model.active_adapters() == ["words"]
    by_name = own.ask("Go on.", adapter="words", max_new_tokens=8).text
    assert own.ask("Go on.", max_new_tokens=8).text == by_name
    chat = own.chat(adapter="eyes")
    eyes = own.ask("Go on.", adapter="eyes", max_new_tokens=8).text
    assert chat.ask("Go on.", max_new_tokens=8).text == eyes
    chat.reset()
    chat.adapter = "words"
    assert chat.ask("Go on.", max_new_tokens=8).text == by_name


def test_names_that_do_not_fit(own: VisionLanguageModel) -> None:
    with pytest.raises(UsageError, match="there is no adapter 'word'; did you mean 'words'"):
        own.ask("Go on.", adapter="word")
    with pytest.raises(UsageError, match="2 adapters are named for 1 prompts"):
        ask(own, [question(0)], ["words", "eyes"])


def test_features_under_an_adapter(own: VisionLanguageModel) -> None:
    """`get_image_features` and `forward` obey the adapter in force, as in transformers."""
    inputs = own.processor.apply_chat_template(
        [question(0)], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    pixels = inputs.pixel_values, inputs.image_grid_thw
    found = {}
    for name in SIZES:
        own.model.set_adapter(name)
        with torch.no_grad():
            logits = own.model(**inputs).logits[0, -1]
            found[name] = own.model.get_image_features(*pixels).pooler_output[0]
        expected = ask(own, [question(0)], name).logits[0][0]
        assert torch.equal(logits.float(), expected.float())
    assert not torch.equal(found["words"], found["eyes"])
    own.model.disable_adapters()
    with torch.no_grad():
        assert torch.equal(own.model.get_image_features(*pixels).pooler_output[0], found["words"])
    own.model.set_adapter("words")
