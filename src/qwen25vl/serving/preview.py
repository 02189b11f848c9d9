"""POST /page/pdf: the pages of a document, for the page's chooser; with `?page=3` that page alone,
large enough to read and to cut a part of it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.models import as_json

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

THUMBNAIL_PIXELS = 48_000
READABLE_PIXELS = 4_000_000
MAX_THUMBNAILS = 64  # of a document; its further pages are listed without one
MAX_PAGES = 10_000


async def preview_pdf(service: Service, request: Request) -> Response:
    """The size of every page in points, and pictures of the first ones, or of the one asked for."""
    limits, data = service.settings.media, await request.body()
    if len(data) > limits.max_pdf_bytes:
        raise ApiError(413, f"The document has {len(data)} bytes; {limits.max_pdf_bytes} at most.")
    sizes = await service.media.measure_pages(data, max_pages=MAX_PAGES)
    num_pages = len(sizes)
    shown = [size.number for size in sizes[: min(MAX_THUMBNAILS, limits.max_pages)]]
    pixels = THUMBNAIL_PIXELS
    wanted = request.query_params.get("page")
    if wanted is not None:
        sizes = [size for size in sizes if str(size.number) == wanted]
        if not sizes:
            raise ApiError(400, f"The document has no page {wanted[:20]}.", param="page")
        shown, pixels = [sizes[0].number], READABLE_PIXELS
    files = await service.media.render_pages(data, shown, max_pixels=pixels)
    pages = []
    for place, size in enumerate(sizes):
        page: dict[str, float | str] = {
            "number": size.number,
            "width": size.width,
            "height": size.height,
        }
        if place < len(files):
            text = base64.b64encode(files[place]).decode()
            page["image"] = f"data:image/png;base64,{text}"
        pages.append(page)
    return as_json({"num_pages": num_pages, "pages": pages})
