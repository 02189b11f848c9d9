"""Every shape in which clients write pictures, clips and documents into their messages."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from media_files import (
    Hosted,
    asked,
    data_url,
    document,
    drawn_document,
    encoded,
    image_part,
    picture,
    refusal,
    refused,
    resolved,
    unstarted,
)

from qwen25vl.processing.messages import Part, read_messages
from qwen25vl.serving.media.medium import Medium
from qwen25vl.serving.settings import MediaLimits

PNG, JPEG = picture("PNG"), picture("JPEG")
URL = data_url(PNG)
FRAMES = [picture("JPEG", seed=seed) for seed in range(4)]
JOINED = "data:video/jpeg;base64," + ",".join(map(encoded, FRAMES))

IMAGES: dict[str, dict[str, Any]] = {
    "OpenAI": {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}},
    "a plain text": {"type": "image_url", "image_url": URL},
    "without a type": {"image_url": {"url": URL}},
    "LMDeploy's keys inside": {"type": "image_url", "image_url": {"url": URL, "max_pixels": 3136}},
    "Qwen's keys beside": {"type": "image_url", "image_url": {"url": URL}, "max_pixels": 3136},
    "Responses": {"type": "input_image", "image_url": URL, "detail": "high"},
    "qwen-vl-utils": {"type": "image", "image": URL},
    "base64 alone": {"type": "image", "image": encoded(PNG)},
    "the ecosystem": {"type": "image", "base64": encoded(PNG)},
    "Anthropic": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": encoded(PNG)},
    },
    "MCP": {"type": "image", "data": encoded(PNG), "mimeType": "image/png"},
    "a picture as a file": {"type": "file", "file": {"file_data": URL, "filename": "a.png"}},
    "vLLM's uuid": {"type": "image_url", "image_url": {"url": URL}, "uuid": "a1"},
    "SGLang's extras": {
        "type": "image_url",
        "image_url": {"url": URL, "max_dynamic_patch": 3},
        "modalities": "multi-images",
        "content_hash": "00",
    },
}


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(name: str) -> None:
    """vLLM answers 400 to a plain text, others to keys that they do not know."""
    (part,) = resolved(asked(IMAGES[name], {"type": "text", "text": "?"}))
    assert isinstance(part.source, Medium)
    assert (part.kind, part.source.form, part.source.contents) == ("image", "picture", (PNG,))
    keys = json.dumps(IMAGES[name])
    assert part.options == ({"max_pixels": 3136} if "max_pixels" in keys else {})


@pytest.mark.parametrize(
    "text",
    [
        encoded(PNG).rstrip("="),
        "\r\n".join(encoded(PNG)[i : i + 76] for i in range(0, len(encoded(PNG)), 76)),
        encoded(PNG).replace("+", "-").replace("/", "_"),
        encoded(PNG).replace("+", "%2B").replace("/", "%2F"),
        " " + encoded(PNG) + "\n",
    ],
)
def test_spellings_of_base64(text: str) -> None:
    """Python's strict decoder refuses what every browser and mail program writes."""
    (part,) = resolved(asked({"type": "image_url", "image_url": {"url": f"data:;base64,{text}"}}))
    assert part.source.contents == (PNG,)


CLIPS: dict[str, dict[str, Any]] = {
    "frames in one address": {"type": "video_url", "video_url": {"url": JOINED}},
    "as a plain text": {"type": "video_url", "video_url": JOINED},
    "Qwen's list": {"type": "video", "video": [data_url(frame) for frame in FRAMES]},
    "a list of parts": {"type": "video", "video": [image_part(frame) for frame in FRAMES]},
    "llama.cpp": {"type": "input_video", "input_video": {"url": JOINED}},
}


@pytest.mark.parametrize("name", CLIPS)
def test_clips_of_frames(name: str) -> None:
    (part,) = resolved(asked({**CLIPS[name], "fps": 4}))
    assert (part.kind, part.source.form) == ("video", "frames")
    assert part.source.contents == tuple(FRAMES)
    assert part.options == {"fps": 4}


def test_animations_and_single_frames_are_clips() -> None:
    gif = picture("GIF")
    parts = resolved(
        asked(
            {"type": "input_video", "input_video": {"data": encoded(gif)}},
            {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{encoded(JPEG)}"}},
        )
    )
    assert [part.source.form for part in parts] == ["clip", "frames"]


def test_the_order_of_parts_is_kept() -> None:
    """docling puts the picture before the text, olmOCR after it; the answer differs."""
    found = asked("first", image_part(PNG), "second", image_part(JPEG), "third")
    parts = [p for m in read_messages(asyncio.run(unstarted().resolve(found))) for p in m.parts]
    assert [p.text or p.source.contents[0] for p in parts] == [
        "first",
        PNG,
        "second",
        JPEG,
        "third",
    ]


def test_pictures_in_results_of_tools() -> None:
    """Agents send their screenshots as results; left unread, they could name files."""
    parts = resolved(
        [
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": [image_part(PNG)]},
            *asked({"type": "tool_result", "tool_use_id": "1", "content": [image_part(JPEG)]}),
            {"type": "function_call_output", "call_id": "2", "output": [image_part(PNG)]},
        ]
    )
    assert [part.source.contents[0] for part in parts] == [PNG, JPEG, PNG]
    assert parts[1].source.param == "messages[2].content[0].content[0].image_url.url"
    assert parts[2].source.param == "messages[3].output[0].image_url.url"


def test_documents(hosted: Hosted) -> None:
    """Pages become pictures, in every form in which clients send a document."""
    data = drawn_document(3)
    url = data_url(data, "application/pdf")
    forms: list[dict[str, Any]] = [
        {"type": "file", "file": {"file_data": url, "filename": "a.pdf"}, "pages": "2-3"},
        {"type": "file", "file": {"file_data": url, "pages": [2, 3]}},
        {"type": "input_file", "file_data": encoded(data), "filename": "a.pdf", "pages": "2-"},
        {"type": "image_url", "image_url": {"url": url}, "pages": "2,3"},
        {"type": "video_url", "video_url": {"url": url}, "pages": "2,3"},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": encoded(data)},
            "pages": "2-3",
        },
    ]
    parts = hosted.parts(*forms)
    assert [part.source.page for part in parts] == [2, 3] * len(forms)
    assert {part.source.contents[0] for part in parts} == {data}


def test_uploaded_files() -> None:
    """The id of an upload was taken for a path."""

    async def open_file(name: str) -> bytes | None:
        return PNG if name == "file-1" else None

    room = unstarted(open_file=open_file)
    for part in (
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
    ):
        (message,) = asyncio.run(room.resolve(asked(part)))
        assert message["content"][0]["image"].contents == (PNG,)
    other = asked({"type": "input_image", "file_id": "file-2"})
    assert asyncio.run(refusal(room.resolve(other))).code == "image_file_not_found"


def test_what_the_client_says_of_its_frames() -> None:
    """Frames that the client took at one rate were played at another."""
    part = {"type": "video_url", "video_url": {"url": JOINED}}
    note = {"fps": 30, "frames_indices": [0, 15, 30, 45], "total_num_frames": 60, "duration": 2}
    (found,) = resolved(asked(part), media_io_kwargs={"video": note})
    assert found.options == {"sample_fps": 2.0}
    (found,) = resolved(asked(part), mm_processor_kwargs={"fps": 1, "max_pixels": 3136})
    assert found.options == {"fps": 1, "max_pixels": 3136}


def test_the_nearest_word_counts() -> None:
    part = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
    call = {"mm_processor_kwargs": {"max_pixels": 9408, "min_pixels": 3136}}
    (found,) = resolved(asked(part), **call)
    assert found.options == {"max_pixels": 512 * 512, "min_pixels": 3136}
    (found,) = resolved(asked({**part, "max_pixels": 784}), **call)
    assert found.options == {"max_pixels": 784}
    (found,) = resolved(asked(image_part(PNG)), mm_processor_kwargs={"size": {"longest_edge": 784}})
    assert found.options == {"max_pixels": 784}


@pytest.mark.parametrize(
    ("part", "code", "words", "end"),
    [
        ({"type": "image_url", "image_url": {"url": ""}, "uuid": "a"}, "invalid_image_url", "uuid",
         ".image_url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@@"}},
         "invalid_base64_image", "base64", ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}},
         "invalid_base64_image", "base64", ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
         "empty_image_file", "empty", ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "/etc/hostname"}}, "invalid_image_url",
         "expected", ".image_url.url"),
        ({"type": "image", "image": "../a.png"}, "invalid_image_url", "expected", ".image"),
        ({"type": "image", "path": "/etc/hostname"}, "invalid_image_url", "paths", ".path"),
        ({"path": "/etc/hostname"}, "invalid_file_url", "paths", ".path"),
        ({"text": "a", "path": "/etc/hostname"}, "invalid_file_url", "paths", ".path"),
        ({"type": "image", "image": {"bytes": None, "path": "/etc/hostname"}},
         "invalid_image_url", "paths", ".image.path"),
        ({"type": "video", "video": ["/etc/hostname"]}, "invalid_video_url", "expected",
         ".video[0]"),
        ({"type": "image_url", "image_url": {"url": "ftp://host/a.png"}}, "invalid_image_url",
         "not read", ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
         "invalid_image_url", "network", ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/hostname"}},
         "invalid_image_url", "local files", ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": URL}, "image": URL}, "invalid_image_url",
         "twice", ".image"),
        ({"type": "image_url", "image_url": {"url": data_url(b"<svg></svg>")}},
         "invalid_image_format", "SVG", ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": data_url(picture("TIFF"))}},
         "unsupported_image_media_type", "TIFF", ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": data_url(picture("AVIF"))}},
         "unsupported_image_media_type", "AVIF", ".image_url.url"),
        ({"type": "video_url", "video_url": {"url": data_url(b"#EXTM3U\nhttp://host/a.ts")}},
         "invalid_video_format", "text", ".video_url.url"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "unsupported_content_type",
         "not supported", ".type"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "ultra"}}, "invalid_value",
         "low, auto", ".detail"),
        ({"type": "input_image", "file_id": "x"}, "image_file_not_found", "no uploaded",
         ".file_id"),
    ],
)  # fmt: skip
def test_what_is_refused(part: dict[str, Any], code: str, words: str, end: str) -> None:
    """Each refusal names the field, in the Responses API's codes; none tells of files."""
    error = refused(asked(part))
    assert (error.status, error.code) == (400, code)
    assert words in error.message
    assert str(error.param).startswith("messages[0].content[0]")
    assert str(error.param).endswith(end)
    assert "hostname" not in error.message


@pytest.mark.parametrize(
    "messages",
    [
        "text",
        [3],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [3]}],
        [{"role": "user", "content": [[image_part(PNG)]]}],
        [{"role": "assistant", "content": None, "refusal": [{"type": "image", "path": "/etc"}]}],
        asked({"type": "tool_result", "content": [{"type": "image", "path": "/etc/hostname"}]}),
        asked({"type": ["image"], "image": URL}),
        asked({}),
    ],
)
def test_nothing_passes_unread(messages: Any) -> None:
    """A part that the room passed over was read as a path by the library behind it."""
    assert refused(messages).status == 400


def test_parts_that_were_not_resolved_are_not_prepared(hosted: Hosted) -> None:
    """The last wall: a path that got as far as here is not opened."""
    part = Part("image", source="/etc/hostname")
    assert hosted.run(refusal(hosted.room.prepare(part))).status == 400


def test_counts() -> None:
    """A request with a hundred pictures is refused before one of them is decoded."""
    limits = MediaLimits(max_images=2, max_videos=1, max_frames=3)
    assert len(resolved(asked(image_part(PNG), image_part(PNG)), limits)) == 2
    error = refused(asked(*[image_part(b"broken")] * 3), limits)
    assert (error.code, error.param) == ("too_many_images", "messages[0].content[2].image_url.url")
    clip = {"type": "video", "video": [URL] * 3}
    assert refused(asked(clip, clip), limits).code == "too_many_videos"
    assert refused(asked({**clip, "video": [URL] * 4}), limits).code == "video_too_large"
    joined = "data:video/jpeg;base64," + ",".join([encoded(JPEG)] * 4)
    error = refused(asked({"type": "video_url", "video_url": joined}), limits)
    assert error.code == "video_too_large"


def test_pages_are_counted_over_all_documents(hosted: Hosted) -> None:
    """Sixty documents of ten pages are six hundred pictures."""
    most = hosted.room.limits.max_pages
    url = data_url(document(most - 1), "application/pdf")
    part = {"type": "file", "file": {"file_data": url}}
    assert len(hosted.parts(part)) == most - 1
    for content in ([part, part], [{**part, "pages": "1-3,1-30"}]):
        error = hosted.run(refusal(hosted.room.resolve(asked(*content))))
        assert error.status == 400
        assert "pages" in error.message
