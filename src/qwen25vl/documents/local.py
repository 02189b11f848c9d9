"""The engine in this process: a server's service without its HTTP."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qwen25vl.documents.backends import IN_FLIGHT, BackendGoneError, measure_pages
from qwen25vl.documents.contents import read_content
from qwen25vl.documents.failures import InputError, of_reply
from qwen25vl.documents.files import KeptFiles
from qwen25vl.documents.items import Attachment, Item, fill
from qwen25vl.serving.chat import check, complete
from qwen25vl.serving.errors import ApiError, of_error
from qwen25vl.serving.reading import wrong_field
from qwen25vl.serving.service import Service
from qwen25vl.serving.settings import MediaLimits, ServerSettings
from qwen25vl.serving.wire import ChatRequest

if TYPE_CHECKING:
    from qwen25vl.vlm import VisionLanguageModel

GIB = 2**30
ENDLESS = 2**40
MANY = 100_000
LIMITS = MediaLimits(
    max_images=MANY, max_videos=MANY, max_pages=MANY, max_decoded_pixels=178_956_970,
    max_image_bytes=GIB, max_video_bytes=GIB, max_pdf_bytes=GIB, worker_bytes=4 * GIB,
    worker_seconds=60.0, keeps_documents=True,
)  # fmt: skip


class LocalBackend:
    """allowed_domains: hosts that pictures may be fetched from. num_workers: processes that
    decode."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        *,
        allowed_domains: tuple[str, ...] = (),
        max_decoded_pixels: int | None = None,
        prompt_lookup: int | None = None,
        num_workers: int = LIMITS.num_workers,
    ) -> None:
        self.vlm = vlm
        pictures = vlm.processor.image_processor.settings
        self.max_pixels = pictures.max_pixels
        # pixels, and three numbers of the model's precision for two frames
        self.bytes_per_pixel: float = 3 + 6 * vlm.model.dtype.itemsize
        self.max_in_flight = IN_FLIGHT
        self.keeps_pages = True
        pixels = max_decoded_pixels or LIMITS.max_decoded_pixels
        limits = replace(
            LIMITS, allowed_domains=allowed_domains, max_decoded_pixels=pixels,
            num_workers=num_workers,
        )  # fmt: skip
        settings = ServerSettings(
            any_model_name=True, max_num_seqs=64, max_queued_requests=MANY, media=limits,
            max_queued_tokens=ENDLESS, max_queued_patches=ENDLESS,
        )  # fmt: skip
        self.service = Service.of(vlm, settings)
        self.service.is_live = False
        self.service.media.reader.open_file = self.open_file
        self.named: dict[str, Attachment] = {}
        self.files = KeptFiles()
        self.prompt_lookup = prompt_lookup
        self.before = vlm.model.generation_config

    async def start(self) -> None:
        model = self.vlm.model
        self.before = model.generation_config
        if self.prompt_lookup is not None:
            model.generation_config = model.generation_config.merge(
                prompt_lookup_num_tokens=self.prompt_lookup
            )
        self.service.keeps_prompts = self.keeps_pages
        await self.service.start()

    async def close(self) -> None:
        self.vlm.model.generation_config = self.before
        await self.service.close()

    async def measure(self, data: bytes, name: str) -> list[tuple[float, float]]:
        return await measure_pages(self.service.media.pool, data, name)

    async def ask(self, item: Item) -> Mapping[str, Any]:
        tokens: list[str] = []

        def name_file(attachment: Attachment) -> dict[str, Any]:
            token = f"file-{token_hex(12)}"
            tokens.append(token)
            self.named[token] = attachment
            part = {"type": attachment.kind, "file_id": token}
            return part if attachment.pages is None else {**part, "pages": attachment.pages}

        try:
            request = ChatRequest.model_validate(fill(item.body, name_file))
            check(request)
            return await complete(self.service, request, None)
        except ValidationError as error:
            raise self.refusal(wrong_field(error), item) from None
        except InputError:
            raise
        except Exception as error:  # of one request; the engine's own are told apart
            if threading.main_thread().is_alive():
                self.service.report(error)
            raise self.refusal(of_error(error), item) from error
        finally:
            for token in tokens:
                self.named.pop(token, None)

    def refusal(self, error: ApiError, item: Item) -> Exception:
        if error.code == "engine_dead" or not self.service.runner.is_healthy:
            return BackendGoneError("the engine has failed several times and is given up")
        return InputError(of_reply(error.status, error.code, error.message, item.name))

    async def open_file(self, token: str) -> bytes | None:
        """What stands behind a name that a request of this job was given."""
        attachment = self.named.get(token)
        if attachment is None:
            return None
        return await read_content(attachment, self.files, attachment.name)
