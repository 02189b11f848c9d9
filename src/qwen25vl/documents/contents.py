"""The content of an attachment as a server takes it.

Pictures in formats that servers do not read become PNG: TIFF above all, whose frames count as the
pages of a document.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen25vl.documents.failures import Failure, InputError, of_system
from qwen25vl.documents.files import KeptFiles
from qwen25vl.documents.items import Attachment
from qwen25vl.errors import MediaSizeError, Qwen25VLError

if TYPE_CHECKING:
    from qwen25vl.processing.content import Content

READ_BY_SERVERS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "HEIC")
MAX_DECODED_PIXELS = 178_956_970
MAX_FRAMES = 10_000
TIFF_STARTS = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")


async def read_content(attachment: Attachment, files: KeptFiles, name: str) -> bytes:
    """Raises InputError. name: of the input, for errors."""
    source = attachment.source
    try:
        if isinstance(source, Path):
            is_page = attachment.pages is not None or attachment.frame is not None
            data = await files.read(source, is_kept=is_page)
        else:
            data = source
    except OSError as error:
        raise InputError(of_system(error, name)) from None
    if attachment.frame is None:
        return data
    return await asyncio.to_thread(to_png, data, attachment.frame, name)


def needs_png(content: Content) -> bool:
    return bool(content.picture) and content.picture not in READ_BY_SERVERS


def count_frames(data: bytes, content: Content, name: str) -> int:
    """Of a TIFF file; 1 of any other. Raises InputError."""
    if content.picture != "TIFF":
        return 1
    with telling(name), open_tiff(data) as picture:
        number: int = getattr(picture, "n_frames", 1)
    if number > MAX_FRAMES:
        raise InputError(Failure("too large", f"{name} has {number} frames, over {MAX_FRAMES}"))
    return number


def to_png(data: bytes, frame: int, name: str) -> bytes:
    """A frame of a TIFF file, or another picture, in RGB. Raises InputError."""
    from qwen25vl.processing.media import load_picture

    with telling(name):
        source: Any = data
        if data[:4] in TIFF_STARTS:
            with open_tiff(data) as picture:
                picture.seek(frame)
                if picture.width * picture.height > MAX_DECODED_PIXELS:
                    raise MediaSizeError(f"it has {picture.width}×{picture.height} pixels")
                source = picture.copy()
        canvas = load_picture(source, max_decoded_pixels=MAX_DECODED_PIXELS)
        file = io.BytesIO()
        canvas.save(file, "PNG", compress_level=1)
    return file.getvalue()


def open_tiff(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=("TIFF",))


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Whatever a decoder raises, as a failure of the input."""
    try:
        yield
    except MemoryError as error:
        raise InputError(Failure("out of memory", f"{name}: {error}")) from None
    except MediaSizeError as error:
        raise InputError(Failure("too large", f"{name}: {error}")) from None
    except Exception as error:
        raise InputError(Failure("broken", f"{name}: {error}")) from None


def unlock(data: bytes, password: str, name: str) -> bytes | None:
    """An encrypted document without its encryption; None for one that opens without a password.
    Raises InputError where the password is wrong."""
    import pypdfium2
    import pypdfium2.raw as pdfium

    from qwen25vl.processing.pdf import LOCK, PASSWORD_ERROR

    with LOCK:
        try:
            pypdfium2.PdfDocument(data).close()
            return None
        except pypdfium2.PdfiumError as error:
            if error.err_code != PASSWORD_ERROR:
                return None  # whoever reads it tells what is wrong
        try:
            document = pypdfium2.PdfDocument(data, password=password)
        except pypdfium2.PdfiumError:
            message = f"{name} is an encrypted document; the password does not open it"
            raise InputError(Failure("encrypted", message)) from None
        try:
            file = io.BytesIO()
            document.save(file, flags=pdfium.FPDF_REMOVE_SECURITY)
            return file.getvalue()
        finally:
            document.close()


def extract_page(data: bytes, number: int, name: str) -> bytes:
    """One page of a document as a document of its own. Raises InputError."""
    from qwen25vl.processing.pdf import open_document

    try:
        with open_document(data, name) as document:
            import pypdfium2

            alone = pypdfium2.PdfDocument.new()
            try:
                alone.import_pages(document, [number - 1])
                file = io.BytesIO()
                alone.save(file)
            except pypdfium2.PdfiumError as error:
                failure = Failure("broken", f"{name}, page {number}: {error}")
                raise InputError(failure) from None
            finally:
                alone.close()
    except Qwen25VLError as error:
        raise InputError(Failure("broken", f"{name}: {error}")) from None
    return file.getvalue()
